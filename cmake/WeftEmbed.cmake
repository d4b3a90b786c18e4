# weft_embed(OUTPUT file.cc FOLDER folder FILES ...): the files as a table of byte arrays with their hashes and gzip
# variants, defined as in server/page.h. Run as a script (cmake -P) it writes one such table.

if(CMAKE_SCRIPT_MODE_FILE)
  function(byte_array name file out)
    file(READ ${file} hex HEX)
    if(name MATCHES "^gzip")
      # Bytes 4 to 7 of gzip are the time of packing: none, so that a build can be reproduced.
      string(SUBSTRING "${hex}" 0 8 head)
      string(SUBSTRING "${hex}" 16 -1 tail)
      set(hex "${head}00000000${tail}")
    endif()
    string(REGEX REPLACE "(................................)" "\\1\n" hex "${hex}")
    string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," hex "${hex}")
    set(${out} "constexpr unsigned char ${name}[] = {\n${hex}};\n" PARENT_SCOPE)
  endfunction()

  set(arrays "")
  set(rows "")
  set(number 0)
  foreach(name IN LISTS FILES)
    file(SHA256 ${FOLDER}/${name} hash)
    string(SUBSTRING ${hash} 0 16 hash)
    file(ARCHIVE_CREATE OUTPUT ${OUTPUT}.gz PATHS ${FOLDER}/${name} FORMAT raw COMPRESSION GZip COMPRESSION_LEVEL 9)
    byte_array(plain_${number} ${FOLDER}/${name} plain)
    byte_array(gzip_${number} ${OUTPUT}.gz gzip)
    string(APPEND arrays "${plain}${gzip}")
    string(APPEND rows "    {\"${name}\", text(plain_${number}), text(gzip_${number}), \"${hash}\"},\n")
    math(EXPR number "${number} + 1")
  endforeach()
  file(REMOVE ${OUTPUT}.gz)
  file(WRITE ${OUTPUT} "// Made by cmake/WeftEmbed.cmake from web/.
#include \"server/page_files.h\"

namespace weft {
namespace {

${arrays}
template <size_t N>
std::string_view text(const unsigned char (&bytes)[N]) {
  return {reinterpret_cast<const char*>(bytes), N};
}

}  // namespace

std::span<const PageFile> page_files() {
  static const PageFile files[] = {
${rows}  };
  return files;
}

}  // namespace weft
")
  return()
endif()

set(WEFT_EMBED_SCRIPT ${CMAKE_CURRENT_LIST_FILE})
function(weft_embed)
  cmake_parse_arguments(ARG "" "OUTPUT;FOLDER" "FILES" ${ARGN})
  list(TRANSFORM ARG_FILES PREPEND ${ARG_FOLDER}/ OUTPUT_VARIABLE paths)
  add_custom_command(OUTPUT ${ARG_OUTPUT}
    COMMAND ${CMAKE_COMMAND} "-DOUTPUT=${ARG_OUTPUT}" "-DFOLDER=${ARG_FOLDER}" "-DFILES=${ARG_FILES}" -P ${WEFT_EMBED_SCRIPT}
    DEPENDS ${paths} ${WEFT_EMBED_SCRIPT}
    COMMENT "Embedding the page" VERBATIM)
endfunction()
