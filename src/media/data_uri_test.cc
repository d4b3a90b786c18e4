#include "media/data_uri.h"

#include <gtest/gtest.h>

#include <string>

namespace weft {
namespace {

std::string text_of(const Result<std::vector<uint8_t>>& bytes) {
  if (!bytes) return "error: " + bytes.error().message;
  return {bytes->begin(), bytes->end()};
}

std::string decode(const std::string& uri) {
  return text_of(decode_data_uri(uri, 1000));
}

TEST(DataUri, DecodesBase64WithAndWithoutPadding) {
  EXPECT_EQ(decode("data:image/png;base64,"), "");
  EXPECT_EQ(decode("data:image/png;base64,TQ=="), "M");
  EXPECT_EQ(decode("data:image/png;base64,TWE="), "Ma");
  EXPECT_EQ(decode("data:image/png;base64,TWFu"), "Man");
  EXPECT_EQ(decode("data:image/png;base64,TWFuTQ"), "ManM");
  EXPECT_EQ(decode("data:;base64,TWE"), "Ma");
  EXPECT_EQ(decode("DATA:image/png;charset=x;BASE64,TW\r\nFu"), "Man");
  EXPECT_EQ(decode("data:;base64, T W\tFu\n"), "Man");
  EXPECT_EQ(decode("data:;base64,%54Q%3D%3d%0A"), "M");
  EXPECT_EQ(decode("data:;base64,%2B%2f++"), decode("data:;base64,+/++"));
}

TEST(DataUri, RefusesWhatIsNoBase64) {
  const std::string bad = "error: the base64 of the data: URI is not valid";
  for (const char* rest : {"T", "TWFuT", "TQ=", "TWE==", "TWFu=", "TWF=u", "=", "T-_u", "TWFu%",
                           "TWFu,", "%4", "%zzTQ==", "%00TQ==", "%25TQ=", "TQ==TQ=="}) {
    EXPECT_EQ(decode(std::string("data:image/png;base64,") + rest), bad) << rest;
  }
}

TEST(DataUri, RefusesOtherUris) {
  const std::string bad =
      "error: it must be a data: URI with base64 (\"data:image/png;base64,...\")";
  for (const char* uri : {"", "data:", "data:image/png,abc", "data:image/png;base64", "base64,TQ",
                          "http://x/;base64,TQ==", "file:///etc/passwd"}) {
    EXPECT_EQ(decode(uri), bad) << uri;
  }
  EXPECT_EQ(decode("data:" + std::string(1000, 'x') + ";base64,TQ=="), bad);
  EXPECT_EQ(decode("data:;base64" + std::string(1000000, ',')),
            "error: the image file is too large");
}

TEST(DataUri, LimitsTheBytes) {
  const std::string kilobyte(1336, 'A');  // 1002 bytes
  EXPECT_EQ(decode("data:;base64," + kilobyte), "error: the image file is too large");
  EXPECT_EQ(decode("data:;base64," + kilobyte.substr(4)).size(), 999u);
}

}  // namespace
}  // namespace weft
