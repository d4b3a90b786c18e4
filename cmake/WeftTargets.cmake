# weft_library(name SOURCES ... DEPS ...): a static library weft_<name> of src/<name>.
# weft_test(name SOURCES ... DEPS ... [LABELS threaded]): a GoogleTest binary; each of its cases is a ctest
#   entry `name.Suite.Case` (with sanitizers the binary is one entry). The label `threaded` puts it
#   into the ThreadSanitizer run of .ci/run.
# weft_bench(name SOURCES ... DEPS ...): a workshop of a kernel, build/<preset>/bench/<name>.

add_library(weft_options INTERFACE)
target_include_directories(weft_options INTERFACE ${CMAKE_SOURCE_DIR}/src)
target_compile_options(weft_options INTERFACE
  $<$<COMPILE_LANGUAGE:CXX>:-Wall -Wextra -Wno-missing-field-initializers -ffp-contract=off -fno-math-errno>)
target_compile_options(weft_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-restrict>)
# -Wno-restrict: g++ 12 warns of overlapping copies inside std::string + std::string (GCC bug 105651).
# -ffp-contract=off: a fused multiply-add is written, never left to the compiler (exactness).
# A type of an unnamed namespace in a field: warned of where the source is not the main file.
target_compile_options(weft_options INTERFACE $<$<COMPILE_LANG_AND_ID:CXX,GNU>:-Wno-subobject-linkage>)
if(WEFT_WERROR)
  target_compile_options(weft_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-Werror>)
endif()
if(WEFT_SANITIZE)
  target_compile_options(weft_options INTERFACE
    $<$<COMPILE_LANGUAGE:CXX>:-fsanitize=${WEFT_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all>)
  target_link_options(weft_options INTERFACE -fsanitize=${WEFT_SANITIZE})
  if(WEFT_SANITIZE_NOT)
    target_compile_options(weft_options INTERFACE $<$<COMPILE_LANGUAGE:CXX>:-fno-sanitize=${WEFT_SANITIZE_NOT}>)
  endif()
endif()

# weft_hot(target...): the presets with sanitizers optimise these at least; the rest of asan-ubsan compiles in
# half the time. (The fuzzers' build has a type of its own and optimises everything.)
function(weft_hot)
  if(CMAKE_BUILD_TYPE STREQUAL "Sanitize")
    foreach(target IN LISTS ARGN)
      target_compile_options(${target} PRIVATE -O1)
    endforeach()
  endif()
endfunction()

# weft_cold(target...): tests need little optimisation, and compile in two thirds of the time. Not for what is
# linked into weft: the templates that its objects share with others would be its slower copies.
function(weft_cold)
  if(NOT WEFT_SANITIZE)
    foreach(target IN LISTS ARGN)
      target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-O1>)
    endforeach()
  endif()
endfunction()

add_custom_target(weft_threaded_tests)  # what the tsan preset has to build

function(weft_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_library(weft_${name} STATIC ${ARG_SOURCES})
  target_link_libraries(weft_${name} PUBLIC weft_options ${ARG_DEPS})
endfunction()

function(weft_test name)
  if(NOT WEFT_TESTS)
    return()
  endif()
  cmake_parse_arguments(ARG "" "LABELS" "SOURCES;DEPS" ${ARGN})
  # Exactly one label: gtest_discover_tests would take a second one, or none, for the next property.
  set(label unit)
  if(ARG_LABELS)
    set(label ${ARG_LABELS})
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE
    ${ARG_DEPS} weft_test_support GTest::gtest GTest::gmock GTest::gtest_main)
  weft_cold(${name})
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/tests)
  if(WEFT_SANITIZE)
    # All cases in one process: most of a case's time would be the sanitizer's start.
    add_test(NAME ${name} COMMAND ${name} --gtest_brief=1 WORKING_DIRECTORY ${CMAKE_SOURCE_DIR})
    set_tests_properties(${name} PROPERTIES LABELS ${label} TIMEOUT 1800)
  else()
    gtest_discover_tests(${name} DISCOVERY_MODE PRE_TEST WORKING_DIRECTORY ${CMAKE_SOURCE_DIR}
      TEST_PREFIX ${name}. PROPERTIES LABELS ${label} TIMEOUT 600)
  endif()
  if(label STREQUAL "threaded")
    add_dependencies(weft_threaded_tests ${name})
  endif()
endfunction()

function(weft_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;DEPS" ${ARGN})
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE ${ARG_DEPS} weft_options)
  set_target_properties(${name} PROPERTIES RUNTIME_OUTPUT_DIRECTORY ${CMAKE_BINARY_DIR}/bench)
endfunction()
