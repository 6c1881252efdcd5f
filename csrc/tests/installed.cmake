# Installs the build into a clean prefix, builds every example against it as a stranger would, and runs those that end.
#     cmake -DBUILD=<build folder> -DSOURCE=<repository> -DWORK=<scratch folder> -DPACKAGE=<model> -P installed.cmake
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
foreach(example IN ITEMS generate c_api soundtrack http_service)
  run(${CMAKE_COMMAND} -S ${SOURCE}/csrc/examples/${example} -B ${WORK}/${example} -DCMAKE_PREFIX_PATH=${prefix} -DCMAKE_BUILD_TYPE=Release)
  run(${CMAKE_COMMAND} --build ${WORK}/${example})
endforeach()

run(${WORK}/c_api/c_api ${PACKAGE} ${WORK}/out 2)
if(EXISTS ${WORK}/out/0.mp4)
  run(${WORK}/generate/generate ${PACKAGE} "a ball bounces" ${WORK}/out/clip.mp4 7 3)
  run(${WORK}/soundtrack/soundtrack ${PACKAGE} ${WORK}/out/clip.mp4 "a ball bounces" ${WORK}/out/sounding.mp4 3)
else()
  run(${WORK}/generate/generate ${PACKAGE} "a ball bounces" ${WORK}/out/clip.y4m 7 3)
endif()

# Without CMake.
find_program(pkg_config pkg-config)
if(pkg_config)
  file(GLOB pc ${prefix}/*/pkgconfig ${prefix}/*/*/pkgconfig)
  run(${CMAKE_COMMAND} -E env PKG_CONFIG_PATH=${pc} ${pkg_config} --cflags --libs syncflow)
endif()
