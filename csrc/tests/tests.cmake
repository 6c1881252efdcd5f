# The C++ tests, for CTest.
enable_testing()

function(syncflow_test_program name library)
  add_executable(${name}_test csrc/tests/${name}_test.cpp)
  target_include_directories(${name}_test PRIVATE csrc/src)
  target_link_libraries(${name}_test PRIVATE ${library})
  target_compile_features(${name}_test PRIVATE cxx_std_20)
  syncflow_strict(${name}_test)
endfunction()

# Named <program>.<level>, or <program> without a level.
function(syncflow_test program)
  foreach(level IN LISTS ARGN)
    add_test(NAME ${program}.${level} COMMAND ${program}_test)
    set_tests_properties(${program}.${level} PROPERTIES ENVIRONMENT "SYNCFLOW_INSTRUCTIONS=${level}" SKIP_RETURN_CODE 77)
  endforeach()
  if(NOT ARGN)
    add_test(NAME ${program} COMMAND ${program}_test)
  endif()
endfunction()

syncflow_test_program(noise syncflow::noise)
syncflow_test(noise)
if(TARGET syncflow::cpu)
  foreach(program blocks instruction_level layers thread_pool)
    syncflow_test_program(${program} syncflow::cpu)
  endforeach()
  set(level_names ${levels})
  list(TRANSFORM level_names REPLACE "^v" "x86-64-v")
  syncflow_test(thread_pool)
  syncflow_test(layers ${level_names})
  syncflow_test(blocks ${level_names})
  syncflow_test(instruction_level)
  syncflow_test(instruction_level ${level_names} x86-64-v0)  # of which the last does not exist
endif()

if(TARGET syncflow)
  include(csrc/tests/core.cmake)

  foreach(program service c_api c_api_random wrapper media)
    syncflow_test_program(${program} syncflow::static)
    syncflow_test(${program})
  endforeach()

  # The header in C, on the shared library; what that exports; the layout of its structs.
  enable_language(C)
  add_executable(header_test csrc/tests/header_test.c)
  set_target_properties(header_test PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF LINKER_LANGUAGE CXX)
  target_link_libraries(header_test PRIVATE syncflow::syncflow)
  target_compile_options(header_test PRIVATE -Wall -Wextra -Wpedantic -Wconversion -Wshadow -Werror)
  add_test(NAME header COMMAND header_test)
  if(UNIX AND NOT APPLE)
    add_test(NAME symbols COMMAND ${CMAKE_COMMAND} -DNM=${CMAKE_NM} -DLIBRARY=$<TARGET_FILE:syncflow>
      -DHEADER=${CMAKE_CURRENT_SOURCE_DIR}/csrc/include/syncflow/syncflow.h -P ${CMAKE_CURRENT_SOURCE_DIR}/csrc/tests/symbols.cmake)
  endif()

  include(csrc/fuzz/fuzz.cmake)

  set(bundled_model ${CMAKE_CURRENT_SOURCE_DIR}/engine/pretrained/syncflow-tiny)
  syncflow_test_program(bundled_model syncflow::static)
  add_test(NAME bundled_model COMMAND bundled_model_test ${bundled_model})
  if(NOT CMAKE_CXX_FLAGS MATCHES "-fsanitize" AND NOT SYNCFLOW_LANES)
    add_test(NAME installed_examples COMMAND ${CMAKE_COMMAND} -DBUILD=${CMAKE_BINARY_DIR} -DSOURCE=${CMAKE_CURRENT_SOURCE_DIR}
      -DWORK=${CMAKE_BINARY_DIR}/installed -DPACKAGE=${bundled_model} -DCXX=${CMAKE_CXX_COMPILER} -P ${CMAKE_CURRENT_SOURCE_DIR}/csrc/tests/installed.cmake)
  endif()
endif()
