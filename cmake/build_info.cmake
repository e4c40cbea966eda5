# tl_build_info: the library behind tightloop/core/build_info.h.
# Included by CMake it defines the target; run as a script (cmake -P) it writes the source file,
# and only when its text changed, so that an unchanged commit rebuilds nothing.

if(CMAKE_SCRIPT_MODE_FILE)
  cmake_policy(VERSION 3.25)
  set(commit "unknown")
  set(diff "")
  # A git archive has its commit written into archive_commit.txt by git (.gitattributes).
  file(READ "${SOURCE_DIR}/cmake/archive_commit.txt" archived)
  if(archived MATCHES "([0-9a-f]+)" AND NOT archived MATCHES "Format")
    set(commit "${CMAKE_MATCH_1}")
  endif()
  find_program(git git)
  if(git AND EXISTS "${SOURCE_DIR}/.git")
    set(in_source COMMAND "${git}" -c "safe.directory=${SOURCE_DIR}" -C "${SOURCE_DIR}")
    execute_process(${in_source} rev-parse HEAD
      OUTPUT_VARIABLE head OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET RESULT_VARIABLE failed)
    if(NOT failed)
      set(commit "${head}")
      execute_process(${in_source} diff --binary --no-ext-diff --no-color HEAD
        OUTPUT_VARIABLE changes ERROR_QUIET)
      if(NOT changes STREQUAL "")
        string(APPEND commit "-dirty")
        string(SHA256 diff "${changes}")
      endif()
    endif()
  endif()
  configure_file("${CMAKE_CURRENT_LIST_DIR}/build_info.cpp.in" "${OUTPUT}" @ONLY)
  return()
endif()

string(TOUPPER "${CMAKE_BUILD_TYPE}" tl_type)
string(JOIN " " tl_options ${CMAKE_CXX_FLAGS} ${CMAKE_CXX_FLAGS_${tl_type}} ${TL_CXX_FLAGS})
set(tl_generated "${CMAKE_BINARY_DIR}/generated/build_info.cpp")

add_custom_target(tl_build_info_source
  COMMAND "${CMAKE_COMMAND}"
    "-DSOURCE_DIR=${CMAKE_SOURCE_DIR}" "-DOUTPUT=${tl_generated}"
    "-DVERSION=${PROJECT_VERSION}"
    "-DCOMPILER=${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}"
    "-DFLAGS=${tl_options}" "-DTYPE=${CMAKE_BUILD_TYPE}" "-DPRESET=${TL_PRESET}"
    "-DSYSTEM=${CMAKE_SYSTEM_NAME} ${CMAKE_SYSTEM_PROCESSOR}"
    -P "${CMAKE_CURRENT_LIST_FILE}"
  BYPRODUCTS "${tl_generated}"
  COMMENT "build info"
  VERBATIM)
add_library(tl_build_info STATIC "${tl_generated}")
add_dependencies(tl_build_info tl_build_info_source)
target_link_libraries(tl_build_info PUBLIC tl_flags)
