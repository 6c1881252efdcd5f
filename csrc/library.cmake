# libsyncflow, shared and static: the engine and its C API.

find_package(Threads REQUIRED)

set(ffmpeg_modules libavformat libavcodec>=59.37 libavutil libswresample libswscale)
set(ffmpeg_found OFF)
if(NOT SYNCFLOW_FFMPEG STREQUAL "OFF")
  find_package(PkgConfig QUIET)
  if(PkgConfig_FOUND)
    pkg_check_modules(FFMPEG QUIET IMPORTED_TARGET ${ffmpeg_modules})
    set(ffmpeg_found ${FFMPEG_FOUND})
  endif()
  if(SYNCFLOW_FFMPEG STREQUAL "ON" AND NOT ffmpeg_found)
    message(FATAL_ERROR "SYNCFLOW_FFMPEG is ON, and pkg-config finds no FFmpeg 5.1 or later (${ffmpeg_modules})")
  endif()
endif()

# The commit that is built; configuration runs again when another is checked out.
set(commit unknown)
find_package(Git QUIET)
if(Git_FOUND)
  execute_process(COMMAND ${GIT_EXECUTABLE} rev-parse --short=12 HEAD WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
    OUTPUT_VARIABLE found_commit ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE git_failed)
  execute_process(COMMAND ${GIT_EXECUTABLE} rev-parse --git-path logs/HEAD WORKING_DIRECTORY ${CMAKE_CURRENT_SOURCE_DIR}
    OUTPUT_VARIABLE head_log ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT git_failed)
    set(commit ${found_commit})
    get_filename_component(head_log "${head_log}" ABSOLUTE BASE_DIR ${CMAKE_CURRENT_SOURCE_DIR})
    if(EXISTS ${head_log})
      set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${head_log})
    endif()
  endif()
endif()

add_library(syncflow_objects OBJECT
  ${SYNCFLOW_CORE_SOURCES}
  csrc/src/service/backends.cpp
  csrc/src/service/engine.cpp
  csrc/src/service/log.cpp
  csrc/src/service/request.cpp
  csrc/src/media/files.cpp
  csrc/src/media/writing.cpp
  csrc/src/capi/api.cpp
  csrc/src/capi/values.cpp)
set_target_properties(syncflow_objects PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_EXTENSIONS OFF)
target_compile_features(syncflow_objects PUBLIC cxx_std_20)
target_include_directories(syncflow_objects PRIVATE csrc/include csrc/src)
target_compile_definitions(syncflow_objects PRIVATE SYNCFLOW_VERSION="${PROJECT_VERSION}" SYNCFLOW_BUILDING_SHARED)
set_property(SOURCE csrc/src/capi/api.cpp APPEND PROPERTY COMPILE_DEFINITIONS SYNCFLOW_COMMIT="${commit}")
# As in the noise: a fused multiply-add would change the last bit of what is promised to the bit.
target_compile_options(syncflow_objects PRIVATE -ffp-contract=off)
syncflow_strict(syncflow_objects)
target_precompile_headers(syncflow_objects PRIVATE ${SYNCFLOW_COMMON_HEADERS})
if(ffmpeg_found)
  target_sources(syncflow_objects PRIVATE csrc/src/media/pictures.cpp csrc/src/media/reading.cpp csrc/src/media/writing_mp4.cpp)
  target_compile_definitions(syncflow_objects PRIVATE SYNCFLOW_FFMPEG)
  target_link_libraries(syncflow_objects PRIVATE PkgConfig::FFMPEG)
endif()

include(csrc/graphs.cmake)

add_library(syncflow SHARED $<TARGET_OBJECTS:syncflow_objects>)
add_library(syncflow_static STATIC $<TARGET_OBJECTS:syncflow_objects>)
add_library(syncflow::syncflow ALIAS syncflow)
add_library(syncflow::static ALIAS syncflow_static)
set_target_properties(syncflow PROPERTIES VERSION ${PROJECT_VERSION} SOVERSION ${PROJECT_VERSION_MAJOR}.${PROJECT_VERSION_MINOR})
set_target_properties(syncflow_static PROPERTIES OUTPUT_NAME syncflow EXPORT_NAME static)
foreach(library IN ITEMS syncflow syncflow_static)
  set_target_properties(${library} PROPERTIES LINKER_LANGUAGE CXX)
  target_include_directories(${library} INTERFACE
    $<BUILD_INTERFACE:${CMAKE_CURRENT_SOURCE_DIR}/csrc/include> $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>)
  target_link_libraries(${library} PRIVATE syncflow::noise syncflow::cpu Threads::Threads ${CMAKE_DL_LIBS})
  if(ffmpeg_found)
    target_link_libraries(${library} PRIVATE PkgConfig::FFMPEG)
  endif()
endforeach()
# Templates of the standard library would be exported, too.
if(UNIX AND NOT APPLE)
  target_link_options(syncflow PRIVATE -Wl,--version-script=${CMAKE_CURRENT_SOURCE_DIR}/csrc/syncflow.map)
  set_property(TARGET syncflow APPEND PROPERTY LINK_DEPENDS ${CMAKE_CURRENT_SOURCE_DIR}/csrc/syncflow.map)
endif()

if(ffmpeg_found)
  set(media "mp4 and reading of media files with FFmpeg (libavformat ${FFMPEG_libavformat_VERSION}); wav, y4m, rgb, ppm")
elseif(SYNCFLOW_FFMPEG STREQUAL "OFF")
  set(media "wav, y4m, rgb, ppm; no mp4: SYNCFLOW_FFMPEG is OFF")
else()
  set(media "wav, y4m, rgb, ppm; no mp4: pkg-config finds no FFmpeg 5.1 or later (Debian: libavformat-dev libswscale-dev libswresample-dev)")
endif()
message(STATUS "libsyncflow ${PROJECT_VERSION}, commit ${commit}")
message(STATUS "  back ends: native (C++, no dependencies)")
foreach(report IN LISTS graph_reports)
  message(STATUS "    ${report}")
endforeach()
message(STATUS "  media: ${media}")
