#pragma once

#include <string>
#include <string_view>

#include "server/http.h"

namespace weft {

/// A file of the page (web/), embedded in the program.
struct PageAsset {
  std::string_view content, gzip;
  std::string_view content_type;
  std::string etag;  ///< quoted and weak: one for both encodings
};

/// The file behind "/" or "/assets/NAME"; nullptr: there is none.
const PageAsset* find_page_asset(std::string_view path);

/// The answer to a GET of `asset`: 304 where the client has it already, gzip where it takes that,
/// with the headers that keep the page from running or fetching anything that is not its own.
HttpResponse page_response(const PageAsset& asset, const HttpRequest& request);

}  // namespace weft
