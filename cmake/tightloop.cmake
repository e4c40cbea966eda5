# Build helpers: flags shared by all targets and one function per kind of target.
set(CMAKE_CXX_STANDARD 20)
set(CMAKE_CXX_STANDARD_REQUIRED ON)
set(CMAKE_CXX_EXTENSIONS OFF)
set(CMAKE_EXPORT_COMPILE_COMMANDS ON)
if(NOT CMAKE_BUILD_TYPE)
  set(CMAKE_BUILD_TYPE Release CACHE STRING "" FORCE)
endif()
set(CMAKE_CXX_FLAGS_RELEASE "-O3 -g1")
set(CMAKE_CXX_FLAGS_SANITIZE "-O1 -g1")   # the build type of the sanitizer and fuzz presets
if(NOT DEFINED CMAKE_CXX_COMPILER_LAUNCHER)
  find_program(TL_CCACHE ccache)
  if(TL_CCACHE)
    set(CMAKE_CXX_COMPILER_LAUNCHER "${TL_CCACHE}")
  endif()
endif()
if(TL_FUZZ)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")   # also of a folder that another compiler made
    message(FATAL_ERROR "TL_FUZZ needs clang, not ${CMAKE_CXX_COMPILER}")
  endif()
  set(TL_SANITIZE "address,undefined,fuzzer-no-link")
endif()
# The thread sanitizer does not understand OpenMP, and clang need not have it.
if(TL_FUZZ OR TL_SANITIZE MATCHES thread)
  set(TL_THREADS_STD ON)
endif()

add_library(tl_flags INTERFACE)
target_include_directories(tl_flags INTERFACE "${CMAKE_SOURCE_DIR}/src")
set(TL_CXX_FLAGS -Wall -Wextra -Wshadow -Wno-missing-field-initializers)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  list(APPEND TL_CXX_FLAGS -Wno-restrict)   # false alarms on std::string in GCC 12
  if(CMAKE_CXX_COMPILER_VERSION VERSION_GREATER_EQUAL 13)
    list(APPEND TL_CXX_FLAGS -Wno-dangling-reference)   # on members of views
  endif()
endif()
list(APPEND TL_CXX_FLAGS -fno-math-errno -ffp-contract=off)
if(TL_WERROR)
  list(APPEND TL_CXX_FLAGS -Werror)
endif()
if(TL_SANITIZE)
  list(APPEND TL_CXX_FLAGS -fsanitize=${TL_SANITIZE} -fno-omit-frame-pointer
                           -fno-sanitize-recover=all)
  target_link_options(tl_flags INTERFACE -fsanitize=${TL_SANITIZE})
  target_compile_definitions(tl_flags INTERFACE TL_SANITIZED=1)
endif()
target_compile_options(tl_flags INTERFACE "$<$<COMPILE_LANGUAGE:CXX>:${TL_CXX_FLAGS}>")
if(TL_CUDA)
  target_compile_options(tl_flags INTERFACE "$<$<COMPILE_LANGUAGE:CUDA>:${TL_CUDA_FLAGS}>")
endif()
if(TL_THREADS_STD)
  target_compile_definitions(tl_flags INTERFACE TL_THREADS_STD=1)
endif()

# tl_library(<layer> DEPS <layers...> LINK <packages...>)
# One static library per layer: all .cpp files of the folder that are not tests, benches or fuzzers,
# and with TL_CUDA all .cu files;
# a folder below with a CMakeLists.txt of its own is a library of its own.
# Every <name>_test.cpp beside the code becomes the ctest <layer>.<name>, and with TL_BENCH every
# <name>_bench.cpp the program bin/bench/<layer>_<name>, with TL_FUZZ every <name>_fuzz.cpp the
# program bin/fuzz/<layer>_<name>.
function(tl_library layer)
  cmake_parse_arguments(ARG "" "" "DEPS;LINK" ${ARGN})
  file(GLOB_RECURSE sources CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cpp")
  if(TL_CUDA)
    file(GLOB_RECURSE kernels CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.cu")
    list(APPEND sources ${kernels})
  endif()
  file(GLOB_RECURSE headers CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*.h")
  file(GLOB_RECURSE nested CONFIGURE_DEPENDS "${CMAKE_CURRENT_SOURCE_DIR}/*/CMakeLists.txt")
  foreach(list ${nested})
    get_filename_component(folder ${list} DIRECTORY)
    list(FILTER sources EXCLUDE REGEX "^${folder}/")
    list(FILTER headers EXCLUDE REGEX "^${folder}/")
  endforeach()
  set(tests ${sources})
  list(FILTER tests INCLUDE REGEX "_test\\.cpp$")
  set(benches ${sources})
  list(FILTER benches INCLUDE REGEX "_bench\\.cpp$")
  set(fuzzers ${sources})
  list(FILTER fuzzers INCLUDE REGEX "_fuzz\\.cpp$")
  list(FILTER sources EXCLUDE REGEX "_(test|bench|fuzz)\\.cpp$")
  if(NOT TL_CUDA)
    list(FILTER tests EXCLUDE REGEX "_sm90_test\\.cpp$")   # of what is only there with CUDA
  endif()
  list(FILTER sources EXCLUDE REGEX "/main\\.cpp$")
  if(NOT sources)
    add_library(tl_${layer} INTERFACE)
    return()
  endif()
  add_library(tl_${layer} STATIC ${sources})
  list(TRANSFORM ARG_DEPS PREPEND "tl_")
  target_link_libraries(tl_${layer} PUBLIC tl_flags ${ARG_DEPS} ${ARG_LINK})
  if(TL_CUDA AND layer IN_LIST TL_CUDA_LAYERS)
    tl_with_cuda(${layer} ${sources})
  endif()
  target_sources(tl_${layer} PUBLIC FILE_SET HEADERS BASE_DIRS "${CMAKE_SOURCE_DIR}/src"
                                    FILES ${headers})
  if(TL_TESTS AND TL_CUDA AND layer STREQUAL "ops")
    # One program for all operations: each of them would hold all kernels.
    tl_test(ops.all ${tests} LINK tl_ops)
  elseif(TL_TESTS)
    foreach(test ${tests})
      get_filename_component(name ${test} NAME_WE)
      string(REGEX REPLACE "_test$" "" name ${name})
      set(labels "")
      if(layer IN_LIST TL_SANITIZED_LAYERS)
        set(labels sanitize)
      endif()
      tl_test(${layer}.${name} ${test} LINK tl_${layer} LABELS ${labels})
    endforeach()
  endif()
  if(TL_BENCH)
    foreach(bench ${benches})
      get_filename_component(name ${bench} NAME_WE)
      string(REGEX REPLACE "_bench$" "" name ${name})
      add_executable(${layer}_${name}_bench ${bench})
      target_link_libraries(${layer}_${name}_bench PRIVATE tl_${layer} benchmark::benchmark)
      set_target_properties(${layer}_${name}_bench PROPERTIES
        OUTPUT_NAME ${layer}_${name} RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin/bench")
    endforeach()
  endif()
  if(TL_FUZZ)
    foreach(fuzzer ${fuzzers})
      get_filename_component(name ${fuzzer} NAME_WE)
      string(REGEX REPLACE "_fuzz$" "" name ${name})
      add_executable(fuzz_${layer}_${name} ${fuzzer})
      target_link_libraries(fuzz_${layer}_${name} PRIVATE tl_${layer})
      target_link_options(fuzz_${layer}_${name} PRIVATE -fsanitize=fuzzer)
      add_dependencies(fuzz_targets fuzz_${layer}_${name})
      set_target_properties(fuzz_${layer}_${name} PROPERTIES
        OUTPUT_NAME ${layer}_${name} RUNTIME_OUTPUT_DIRECTORY "${CMAKE_BINARY_DIR}/bin/fuzz")
    endforeach()
  endif()
endfunction()

# tl_with_cuda(<layer> <sources...>): gives a layer CUDA's run time, and its files TL_CUDA=1. Not
# <name>_cpu.cpp and <name>_ref.cpp: like all other layers they compile as without CUDA, so that
# ccache serves both builds.
function(tl_with_cuda layer)
  target_link_libraries(tl_${layer} PRIVATE $<LINK_ONLY:CUDA::cudart_static>)
  set(sources ${ARGN})
  list(FILTER sources EXCLUDE REGEX "_(cpu|ref)\\.cpp$")
  set_property(SOURCE ${sources} APPEND PROPERTY COMPILE_DEFINITIONS TL_CUDA=1)
  list(FILTER sources INCLUDE REGEX "\\.cpp$")
  set_property(SOURCE ${sources} APPEND PROPERTY COMPILE_OPTIONS
               "-isystem${CUDAToolkit_INCLUDE_DIRS}")
endfunction()

# Layers whose unit tests also run under the sanitizers: those that parse, thread, plan or own
# memory. The tests in tests/ say so themselves, with LABELS sanitize.
set(TL_SANITIZED_LAYERS core io text program engine decode train)
# Layers that have kernels or ask for TL_CUDA.
set(TL_CUDA_LAYERS core ops engine)
add_custom_target(sanitize_tests)   # builds what `ctest -L sanitize` runs
add_custom_target(fuzz_targets)     # with TL_FUZZ: all programs in bin/fuzz

# tl_test(<name> <files...> LINK <targets...> [LABELS ...]): one GoogleTest binary, one ctest entry.
# Labels: `slow` leaves it out of the quick suite; `sanitize` puts it into the sanitizer runs.
function(tl_test name)
  cmake_parse_arguments(ARG "" "" "LINK;LABELS" ${ARGN})
  string(REPLACE "." "_" target ${name}_test)
  add_executable(${target} ${ARG_UNPARSED_ARGUMENTS})
  target_link_libraries(${target} PRIVATE ${ARG_LINK} GTest::gtest GTest::gtest_main)
  # What is tested has the preset's flags; the tests themselves compile in half the time like this.
  target_compile_options(${target} PRIVATE $<$<CONFIG:Release>:-O1>)
  add_test(NAME ${name} COMMAND ${target})
  if(NOT "slow" IN_LIST ARG_LABELS)
    list(APPEND ARG_LABELS quick)
  endif()
  if("sanitize" IN_LIST ARG_LABELS)
    add_dependencies(sanitize_tests ${target})
  endif()
  set_tests_properties(${name} PROPERTIES LABELS "${ARG_LABELS}" TIMEOUT 600
    ENVIRONMENT "TL_SOURCE_DIR=${CMAKE_SOURCE_DIR};TL_BINARY=${CMAKE_BINARY_DIR}/bin/tightloop")
endfunction()

# tl_add_op(<name>): registers the folder ops/<name>. It must have a header and a test.
function(tl_add_op name)
  set(dir "${CMAKE_CURRENT_SOURCE_DIR}/${name}")
  foreach(file ${name}.h ${name}_test.cpp)
    if(NOT EXISTS "${dir}/${file}")
      message(FATAL_ERROR "tl_add_op(${name}): ${dir}/${file} is missing")
    endif()
  endforeach()
  set_property(GLOBAL APPEND PROPERTY TL_OPS ${name})
endfunction()
