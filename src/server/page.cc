#include "server/page.h"

#include <map>

#include "server/page_files.h"

namespace weft {
namespace {

// Pictures that a user attaches are data: URLs, videos blob: while frames are taken of them;
// everything else comes from the server itself.
constexpr std::string_view kPolicy =
    "default-src 'self'; img-src 'self' data: blob:; media-src blob:; object-src 'none'; base-uri "
    "'none'; "
    "form-action 'none'; frame-ancestors 'none'";

std::string_view content_type(std::string_view name) {
  const std::string_view ending = name.substr(name.rfind('.'));
  if (ending == ".html") return "text/html; charset=utf-8";
  if (ending == ".css") return "text/css; charset=utf-8";
  if (ending == ".js") return "text/javascript; charset=utf-8";
  return "image/svg+xml";
}

std::map<std::string, PageAsset, std::less<>> make_assets() {
  std::map<std::string, PageAsset, std::less<>> assets;
  for (const PageFile& file : page_files()) {
    const std::string path =
        file.name == "index.html" ? std::string("/") : "/assets/" + std::string(file.name);
    assets[path] = {file.plain, file.gzip, content_type(file.name),
                    "W/\"" + std::string(file.hash) + "\""};
  }
  return assets;
}

/// All values of a header, as one list.
std::string header_list(const HttpRequest& request, std::string_view name) {
  std::string list;
  for (const auto& [key, value] : request.headers) {
    if (key != name) continue;
    if (!list.empty()) list += ',';
    list += value;
  }
  return list;
}

std::string_view trim(std::string_view text) {
  while (!text.empty() && (text.front() == ' ' || text.front() == '\t')) text.remove_prefix(1);
  while (!text.empty() && (text.back() == ' ' || text.back() == '\t')) text.remove_suffix(1);
  return text;
}

/// Calls `each` with every element of a comma-separated list, until it returns true.
template <class Each>
bool any_of_list(std::string_view list, Each each) {
  while (!list.empty()) {
    const size_t comma = list.find(',');
    if (each(trim(list.substr(0, comma)))) return true;
    if (comma == std::string_view::npos) break;
    list.remove_prefix(comma + 1);
  }
  return false;
}

/// RFC 9110 13.1.2: weak comparison.
bool matches(std::string_view if_none_match, std::string_view etag) {
  const auto opaque = [](std::string_view tag) {
    return tag.starts_with("W/") ? tag.substr(2) : tag;
  };
  return any_of_list(if_none_match, [&](std::string_view tag) {
    return tag == "*" || opaque(tag) == opaque(etag);
  });
}

/// RFC 9110 12.5.3, as far as it concerns gzip: named, and not with the weight 0.
bool takes_gzip(std::string_view accept_encoding) {
  return any_of_list(accept_encoding, [](std::string_view entry) {
    const size_t semicolon = entry.find(';');
    if (trim(entry.substr(0, semicolon)) != "gzip") return false;
    if (semicolon == std::string_view::npos) return true;
    const std::string_view weight = trim(entry.substr(semicolon + 1));
    return !weight.starts_with("q=0") || weight.find_first_of("123456789") != weight.npos;
  });
}

}  // namespace

const PageAsset* find_page_asset(std::string_view path) {
  static const auto assets = make_assets();
  const auto found = assets.find(path);
  return found == assets.end() ? nullptr : &found->second;
}

HttpResponse page_response(const PageAsset& asset, const HttpRequest& request) {
  HttpResponse response;
  response.content_type = asset.content_type;
  response.headers = {
      {"ETag", asset.etag},
      {"Cache-Control", "no-cache"},  // kept, but asked about: a new build shows at once
      {"Vary", "Accept-Encoding"},
      {"Content-Security-Policy", std::string(kPolicy)},
      {"X-Content-Type-Options", "nosniff"},
      {"Referrer-Policy", "no-referrer"},
      {"Cross-Origin-Opener-Policy", "same-origin"},
      {"Cross-Origin-Resource-Policy", "same-origin"},
  };
  if (matches(header_list(request, "if-none-match"), asset.etag)) {
    response.status = 304;
  } else if (takes_gzip(header_list(request, "accept-encoding"))) {
    response.headers.emplace_back("Content-Encoding", "gzip");
    response.body = asset.gzip;
  } else {
    response.body = asset.content;
  }
  return response;
}

}  // namespace weft
