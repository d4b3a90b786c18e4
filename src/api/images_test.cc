#include "api/images.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace weft {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

/// A PNG of 2 x 2 grey pixels.
constexpr const char* kPng =
    "iVBORw0KGgoAAAANSUhEUgAAAAIAAAACCAAAAABX3VL4AAAADklEQVR4nGNg+M/0nwEABgYCAX4eAgoA"
    "AAAASUVORK5CYII=";

ImageInputConfig config() {
  ImageInputConfig out;
  out.processing.patch_size = 4;
  out.processing.min_pixels = 8 * 8;
  out.processing.max_pixels = 64 * 64;
  out.image_token = 9;
  out.max_image_tokens = max_tokens(out.processing);
  out.max_images = 3;
  return out;
}

std::shared_ptr<const ImagePatches> picture(int h, int w) {
  auto out = std::make_shared<ImagePatches>();
  out->h = h;
  out->w = w;
  out->num_tokens = int64_t{h} * w / 4;
  return out;
}

TEST(ImageReader, ReadsDataUris) {
  const ImageReader reader(config());
  const auto image = reader.read({"f", std::string("data:image/png;base64,") + kPng});
  ASSERT_TRUE(image.ok()) << image.error().message;
  EXPECT_EQ((*image)->num_tokens, 1);
  EXPECT_EQ((*image)->samples.size(), 4u * 3 * 2 * 4 * 4);
}

/// Attack list A41: the same bytes processed otherwise are another entry of every cache.
TEST(ImageReader, TheDigestIsOfTheFileAndOfItsProcessing) {
  const std::string uri = std::string("data:;base64,") + kPng;
  const auto digest = [&](const ImageInputConfig& c) {
    return ImageReader(c).read({"f", uri}).value()->digest;
  };
  EXPECT_EQ(digest(config()), digest(config()));
  ImageInputConfig other = config();
  other.processing.max_pixels = 32 * 32;
  EXPECT_NE(digest(config()), digest(other));
  other = config();
  other.processing.mean[1] = 0.5;
  EXPECT_NE(digest(config()), digest(other));
  other = config();
  other.processing.resampling = Resampling::kBilinear;
  EXPECT_NE(digest(config()), digest(other));
}

TEST(ImageReader, BoundsOfARequestStayWithinThoseOfTheServer) {
  const ImageReader reader(config());
  const std::string uri = std::string("data:;base64,") + kPng;
  const auto read = [&](PixelBounds bounds) { return reader.read({"f", uri, bounds}); };
  const auto plain = read({}).value();
  const int64_t most = config().processing.max_pixels;
  const auto side = config().processing.patch_size;
  const auto pixels = [&](const auto& image) { return int64_t{image->h} * image->w * side * side; };
  EXPECT_EQ(read({0, most * 100}).value()->digest, plain->digest);
  const auto large = read({most, most * 100}).value();
  EXPECT_GT(pixels(large), pixels(plain));
  EXPECT_LE(pixels(large), most);
  EXPECT_NE(large->digest, plain->digest);
  const auto small = read({0, 1}).value();
  EXPECT_EQ(small->num_tokens, 1);
  EXPECT_EQ(read({9, 8}).error().message, "f: min_pixels must not exceed max_pixels");
}

TEST(ImageReader, UsualBoundsAreOfTheImagesThatSayNone) {
  const ImageReader reader(config());
  const std::string uri = std::string("data:;base64,") + kPng;
  const PixelBounds tiny = {0, 1}, large = {config().processing.max_pixels, 0};
  const std::vector<ImageSource> sources = {{"f", uri, {}}, {"g", uri, tiny}, {"h", uri, large}};
  const auto plain = reader.read_all(sources).value(),
             usual = reader.read_all(sources, large).value();
  EXPECT_EQ(plain[0]->digest, reader.read({"f", uri}).value()->digest);
  EXPECT_EQ(usual[0]->digest, reader.read({"f", uri, large}).value()->digest);
  EXPECT_GT(usual[0]->num_tokens, plain[0]->num_tokens);
  EXPECT_EQ(usual[1]->digest, plain[1]->digest) << "its own bounds";
  EXPECT_EQ(usual[0], usual[2]) << "the same picture with the same bounds is decoded once";
  EXPECT_NE(usual[0], usual[1]);
  EXPECT_EQ(reader.read({"f", uri}, {9, 8}).error().message,
            "f: min_pixels must not exceed max_pixels");
}

TEST(ImageReader, FilesAreReadWhereThatIsAllowed) {
  ImageInputConfig c = config();
  c.read_file = [](const std::string& url) -> Result<std::vector<uint8_t>> {
    return not_found("no " + url);
  };
  EXPECT_EQ(ImageReader(c).read({"f", "file:///a"}).error().message, "f: no file:///a");
  EXPECT_THAT(ImageReader(c).read({"f", "/a"}).error().message, HasSubstr("must be a data: URI"));
}

TEST(ImageReader, ErrorsAreFixedTextsBehindTheField) {
  const ImageReader reader(config());
  const auto error = [&](const std::string& uri) {
    return reader.read({"messages[0].content[1]", uri}).error().message;
  };
  EXPECT_EQ(error("data:image/png;base64,AAAA"),
            "messages[0].content[1]: the image is not a PNG, JPEG, WebP or GIF file");
  EXPECT_EQ(error("data:image/png;base64,?"),
            "messages[0].content[1]: the base64 of the data: URI is not valid");
  for (const char* uri : {"http://127.0.0.1/", "HTTPS://example.com/a.png"}) {
    EXPECT_EQ(error(uri),
              "messages[0].content[1]: this server fetches no URLs; send the image as a data: URI");
  }
  for (const char* uri : {"file:///etc/passwd", "gopher://x/", "/etc/passwd", "ftp://x/", ""}) {
    EXPECT_THAT(error(uri), HasSubstr("must be a data: URI with base64")) << uri;
  }
}

TEST(ImageReader, FetchesWhereThatIsAllowed) {
  ImageInputConfig c = config();
  std::vector<std::string> asked;
  c.fetch = [&](const std::string& url) -> Result<std::vector<uint8_t>> {
    asked.push_back(url);
    return unavailable("the image can't be fetched");
  };
  const ImageReader reader(c);
  EXPECT_EQ(reader.read({"f", "https://x/y"}).error().message, "f: the image can't be fetched");
  EXPECT_THAT(asked, ElementsAre("https://x/y"));
}

TEST(ImageReader, CountsImages) {
  const ImageReader reader(config());
  const ImageSource source{"f", std::string("data:;base64,") + kPng};
  const auto three = reader.read_all({source, source, source}).value();
  EXPECT_EQ(three[0], three[2]) << "the same picture is decoded once";
  EXPECT_EQ(reader.read_all({source, source, source, source}).error().message,
            "messages: they hold 4 images; allowed: at most 3");
}

TEST(ImageReader, ExpandsPlaceholders) {
  const ImageReader reader(config());
  const ImagePrompt got = reader.expand({1, 9, 2, 9}, {picture(4, 2), picture(2, 6)}).value();
  EXPECT_THAT(got.ids, ElementsAre(1, 9, 9, 2, 9, 9, 9));
  ASSERT_EQ(got.images.size(), 2u);
  EXPECT_EQ(got.images[0].first, 1);
  EXPECT_EQ(got.images[1].first, 4);
  using Triple = std::array<int32_t, 3>;
  EXPECT_THAT(got.positions,
              ElementsAre(Triple{0, 0, 0}, Triple{1, 1, 1}, Triple{1, 2, 1}, Triple{3, 3, 3},
                          Triple{4, 4, 4}, Triple{4, 4, 5}, Triple{4, 4, 6}));
  EXPECT_EQ(got.rope_delta, 0);
  EXPECT_TRUE(reader.expand({1, 2}, {}).value().positions.empty());
}

TEST(ImageReader, PlaceholdersAndImagesMustAgree) {
  const ImageReader reader(config());
  EXPECT_THAT(reader.expand({1, 2}, {picture(2, 2)}).error().message, HasSubstr("shows 0 of 1"));
  EXPECT_THAT(reader.expand({9, 9}, {picture(2, 2)}).error().message, HasSubstr("shows 2 of 1"));
}

}  // namespace
}  // namespace weft
