# Installs the build into a clean prefix, builds every example and a consumer of the kernels alone against it as a stranger would, in one
# build, and runs those that end. How fast they are themselves does not matter: they are not optimised.
#     cmake -DBUILD=<build folder> -DSOURCE=<repository> -DWORK=<scratch folder> -DPACKAGE=<model> -DCXX=<compiler> -P installed.cmake
set(prefix ${WORK}/prefix)
file(REMOVE_RECURSE ${WORK})
file(MAKE_DIRECTORY ${WORK}/out)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE failed OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(failed)
    message(FATAL_ERROR "${ARGN}\n${output}")
  endif()
  message(STATUS "${output}")
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
set(built ${WORK}/examples)
file(WRITE ${WORK}/source/CMakeLists.txt "cmake_minimum_required(VERSION 3.21)
project(strangers LANGUAGES C CXX)
add_subdirectory(${SOURCE}/csrc/examples examples)
add_subdirectory(${SOURCE}/csrc/tests/consumer consumer)
")
run(${CMAKE_COMMAND} -S ${WORK}/source -B ${WORK} -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_CXX_COMPILER=${CXX} -DCMAKE_BUILD_TYPE=)
run(${CMAKE_COMMAND} --build ${WORK} --parallel)

run(${WORK}/consumer/consumer)  # whose noise tests/native compares with Python
run(${built}/c_api/c_api ${PACKAGE} ${WORK}/out 2)
if(EXISTS ${WORK}/out/0.mp4)
  run(${built}/generate/generate ${PACKAGE} "a ball bounces" ${WORK}/out/clip.mp4 7 3)
  run(${built}/soundtrack/soundtrack ${PACKAGE} ${WORK}/out/clip.mp4 "a ball bounces" ${WORK}/out/sounding.mp4 3)
else()
  run(${built}/generate/generate ${PACKAGE} "a ball bounces" ${WORK}/out/clip.y4m 7 3)
endif()

# Without CMake.
find_program(pkg_config pkg-config)
if(pkg_config)
  file(GLOB pc ${prefix}/*/pkgconfig ${prefix}/*/*/pkgconfig)
  run(${CMAKE_COMMAND} -E env PKG_CONFIG_PATH=${pc} ${pkg_config} --cflags --libs syncflow)
endif()
