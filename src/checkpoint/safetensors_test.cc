#include "checkpoint/safetensors.h"

#include <gmock/gmock.h>
#include <sys/stat.h>

#include "checkpoint/safetensors_writer.h"
#include "checkpoint/test_files.h"
#include "tests/support/oracle.h"

namespace weft {
namespace {

using ::testing::HasSubstr;
using testing::raw_safetensors;
using testing::read_file;
using testing::TempDir;
using testing::write_file;

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  const std::string& offsets) {
  std::string out = "\"";
  out.append(name).append("\":{\"dtype\":\"").append(dtype).append("\",\"shape\":");
  return out.append(shape).append(",\"data_offsets\":").append(offsets).append("}");
}

std::string braces(std::string_view inner) {
  std::string out = "{";
  return out.append(inner).append("}");
}

Result<SafetensorsFile> open_bytes(const TempDir& dir, const std::string& bytes) {
  write_file(dir.file("x.safetensors"), bytes);
  return SafetensorsFile::open(dir.file("x.safetensors"));
}

std::string problem(const TempDir& dir, const std::string& bytes) {
  const auto file = open_bytes(dir, bytes);
  return file.ok() ? "accepted" : file.error().message;
}

/// The verdict on a header alone, before `data_bytes` bytes of data.
std::string header_problem(const std::string& header, uint64_t data_bytes) {
  const auto parsed = parse_safetensors_header(header, 8 + header.size() + data_bytes);
  return parsed.ok() ? "accepted" : parsed.error().message;
}

TEST(Safetensors, ReadsWhatWasWritten) {
  const TempDir dir;
  const std::vector<float> a = {1, 2, 3, 4, 5, 6};
  const std::vector<int32_t> b = {-7};
  const std::vector<bf16> c = {0x3f80, 0x4000};
  const auto bytes = [](const auto& v) { return std::as_bytes(std::span(v)); };
  ASSERT_TRUE(write_safetensors(dir.file("x"),
                                {{"a", DType::kF32, {2, 3}, bytes(a)},
                                 {"empty", DType::kF16, {0, 4}, {}},
                                 {"scalar", DType::kI32, {}, bytes(b)},
                                 {"c \xc3\xa9", DType::kBF16, {2}, bytes(c)}},
                                {{"note", "made by a test"}})
                  .ok());
  const auto file = SafetensorsFile::open(dir.file("x"));
  ASSERT_TRUE(file.ok()) << file.error().message;
  EXPECT_EQ(file->tensors().size(), 4u);
  EXPECT_EQ(file->metadata().at("note"), "made by a test");
  const TensorInfo* tensor = file->find("a");
  ASSERT_NE(tensor, nullptr);
  EXPECT_EQ(tensor->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(tensor->num_elements(), 6);
  EXPECT_EQ(file->find("empty")->num_bytes(), 0u);
  EXPECT_EQ(file->find("empty")->num_elements(), 0);
  EXPECT_EQ(file->find("scalar")->num_elements(), 1);
  EXPECT_EQ(file->find("c \xc3\xa9")->dtype, DType::kBF16);
  EXPECT_EQ(file->find("d"), nullptr);

  std::vector<float> got(2);
  ASSERT_TRUE(file->read(*tensor, 8, std::as_writable_bytes(std::span(got))).ok());
  EXPECT_EQ(got, (std::vector<float>{3, 4}));
  const auto whole = file->load("c \xc3\xa9");
  ASSERT_TRUE(whole.ok());
  EXPECT_EQ(std::memcmp(whole->data(), c.data(), 4), 0);
  EXPECT_FALSE(file->load("d").ok());
}

TEST(Safetensors, EveryOracleFileOpens) {
  int count = 0;
  for (const auto& item : std::filesystem::recursive_directory_iterator(oracle_dir())) {
    if (item.path().extension() != ".safetensors") continue;
    const auto file = SafetensorsFile::open(item.path().string());
    EXPECT_TRUE(file.ok()) << (file.ok() ? "" : file.error().message);
    ++count;
  }
  EXPECT_GE(count, 20);
}

// A01
TEST(SafetensorsAttack, HeaderLength) {
  const TempDir dir;
  const std::string header = "{}";
  for (const uint64_t length :
       {uint64_t{0}, uint64_t{1}, uint64_t{7}, uint64_t{3}, uint64_t{1} << 31, uint64_t{1} << 32,
        uint64_t{1} << 63, ~uint64_t{0}, ~uint64_t{0} - 7, uint64_t{10}}) {
    EXPECT_NE(problem(dir, raw_safetensors(length, header, "")), "accepted") << length;
  }
  EXPECT_EQ(problem(dir, raw_safetensors(2, header, "")), "accepted");
  for (const char* bytes : {"", "1", "1234567"}) {
    EXPECT_THAT(problem(dir, bytes), HasSubstr("fewer than 8"));
  }
  // A sparse file that is long enough for a header over the cap: refused before allocation.
  const std::string path = dir.file("sparse");
  write_file(path, raw_safetensors(kMaxSafetensorsHeader + 1, "{", ""));
  std::filesystem::resize_file(path, kMaxSafetensorsHeader * 2);
  EXPECT_THAT(SafetensorsFile::open(path).error().message, HasSubstr("at most 67108864"));
}

// A02
TEST(SafetensorsAttack, HostileJson) {
  const std::string good = entry("a", "U8", "[1]", "[0,1]");
  EXPECT_EQ(header_problem(braces(good), 1), "accepted");
  EXPECT_EQ(header_problem(braces(good) + "  \n ", 1), "accepted");
  EXPECT_NE(header_problem(std::string(1000000, '['), 0), "accepted");
  EXPECT_NE(header_problem(braces("\"a\":").append(1000000, '['), 0), "accepted");
  std::string deep;
  for (int i = 0; i < 1000000; ++i) deep += "{\"a\":";
  EXPECT_NE(header_problem(deep, 0), "accepted");
  EXPECT_THAT(header_problem(braces(std::string(16 << 20, 'n').insert(0, 1, '"') + "\":{}"), 0),
              HasSubstr("at most 1024"));
  EXPECT_THAT(header_problem(braces(good + "," + good), 1), HasSubstr("\"a\" twice"));
  EXPECT_THAT(
      header_problem(R"({"a":{"dtype":"U8","dtype":"U8","shape":[1],"data_offsets":[0,1]}})", 1),
      HasSubstr("\"dtype\" twice"));
  EXPECT_THAT(header_problem(R"({"__metadata__":{"k":"1","k":"2"}})", 0), HasSubstr("twice"));
  EXPECT_THAT(header_problem(braces(entry("\xff\xfe", "U8", "[1]", "[0,1]")), 1),
              HasSubstr("not valid JSON"));
  EXPECT_THAT(header_problem(braces(entry("a\\u0000b", "U8", "[1]", "[0,1]")), 1),
              HasSubstr("control characters"));
  EXPECT_THAT(header_problem(braces(entry("", "U8", "[1]", "[0,1]")), 1), HasSubstr("empty"));
  EXPECT_NE(header_problem(braces(entry("a", "U8", "[1e400]", "[0,1]")), 1), "accepted");
  EXPECT_NE(header_problem(braces(entry("a", "U8", "[NaN]", "[0,1]")), 1), "accepted");
  EXPECT_NE(header_problem(braces(good).insert(0, 1, ' '), 1), "accepted");
  for (const char* header :
       {"", "null", "[]", "1", "\"a\"", "{", "{}{}", "{\"a\":1}", "{\"a\":null}", "{\"a\":{}}",
        "{\"__metadata__\":{\"a\":1}}", "{\"__metadata__\":[]}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1],\"x\":1}}"}) {
    EXPECT_NE(header_problem(header, 1), "accepted") << header;
  }
  std::string many = "{";
  for (int i = 0; i <= 262144; ++i) {
    if (i > 0) many += ',';
    many += entry(std::to_string(i), "U8", "[0]", "[0,0]");
  }
  EXPECT_THAT(header_problem(many + "}", 0), HasSubstr("more than 262144 tensors"));
}

// A03
TEST(SafetensorsAttack, Shapes) {
  const auto shaped = [](const std::string& shape, const char* dtype = "F32") {
    return header_problem(braces(entry("a", dtype, shape, "[0,4]")), 4);
  };
  EXPECT_EQ(shaped("[1]"), "accepted");
  EXPECT_EQ(shaped("[]"), "accepted");
  EXPECT_EQ(shaped("[1,1,1,1,1,1,1,1]"), "accepted");
  EXPECT_THAT(shaped("[4398046511105,4398046511105]"), HasSubstr("too large"));
  EXPECT_THAT(shaped("[4611686018427387905]"), HasSubstr("too large"));  // x 4 wraps to 4
  EXPECT_THAT(shaped("[18446744073709551615]"), HasSubstr("too large"));
  EXPECT_THAT(shaped("[18446744073709551616]"), HasSubstr("integers"));
  EXPECT_THAT(shaped("[4611686018427387904,4,0]"), HasSubstr("too large"));
  EXPECT_THAT(shaped("[-1]"), HasSubstr("negative"));
  EXPECT_THAT(shaped("[1.0]"), HasSubstr("integers"));
  EXPECT_THAT(shaped("[0]"), HasSubstr("needs 0 bytes"));
  EXPECT_THAT(shaped("[\"1\"]"), HasSubstr("can't hold"));
  EXPECT_THAT(shaped("[[1]]"), HasSubstr("can't hold"));
  std::string dims = "[1";
  for (int i = 1; i < 65; ++i) dims += ",1";
  EXPECT_THAT(shaped(dims + "]"), HasSubstr("more than 8"));
  EXPECT_THAT(shaped("[1]", "F33"), HasSubstr("\"F33\"; weft knows F32"));
  EXPECT_THAT(shaped("[1]", "f32"), HasSubstr("weft knows"));
  EXPECT_THAT(shaped("[1]", "F64"), HasSubstr("needs 8 bytes"));
}

// A04
TEST(SafetensorsAttack, Ranges) {
  const auto two = [](const std::string& a, const std::string& b, size_t data_bytes) {
    return header_problem(
        braces(entry("a", "U8", "[4]", a).append(",").append(entry("b", "U8", "[4]", b))),
        data_bytes);
  };
  EXPECT_EQ(two("[0,4]", "[4,8]", 8), "accepted");
  EXPECT_EQ(two("[4,8]", "[0,4]", 8), "accepted");
  EXPECT_THAT(two("[0,4]", "[2,6]", 6), HasSubstr("overlap"));
  EXPECT_THAT(two("[0,4]", "[0,4]", 4), HasSubstr("overlap"));
  EXPECT_THAT(two("[0,4]", "[5,9]", 9), HasSubstr("hole after byte 4"));
  EXPECT_THAT(two("[1,5]", "[5,9]", 9), HasSubstr("hole after byte 0"));
  EXPECT_THAT(two("[0,4]", "[4,8]", 9), HasSubstr("cover 8 of the file's 9"));
  EXPECT_THAT(two("[0,4]", "[4,8]", 7), HasSubstr("past the file's 7"));
  EXPECT_THAT(two("[4,0]", "[4,8]", 8), HasSubstr("reversed"));
  EXPECT_THAT(two("[0,4]", "[4,18446744073709551615]", 8), HasSubstr("past the file"));
  EXPECT_THAT(two("[0,4]", "[18446744073709551612,18446744073709551615]", 8), HasSubstr("past"));
  EXPECT_THAT(two("[0,4]", "[-4,8]", 8), HasSubstr("negative"));
  EXPECT_THAT(two("[0,4]", "[4]", 8), HasSubstr("two numbers"));
  EXPECT_THAT(two("[0,4]", "[4,8,9]", 8), HasSubstr("two numbers"));
  EXPECT_THAT(two("[0,4]", "[4,9]", 9), HasSubstr("needs 4 bytes"));
  // An empty tensor inside another one's range is not in a gap of the file.
  const std::string inside =
      braces(entry("a", "U8", "[4]", "[0,4]").append(",").append(entry("b", "U8", "[0]", "[2,2]")));
  EXPECT_THAT(header_problem(inside, 4), HasSubstr("overlap"));
}

std::string sample_file(const TempDir& dir) {
  std::vector<float> values(96);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i);
  const auto bytes = std::as_bytes(std::span(values));
  const auto part = [&](size_t begin, size_t count) { return bytes.subspan(begin * 4, count * 4); };
  EXPECT_TRUE(write_safetensors(dir.file("sample"),
                                {{"model.embed", DType::kF32, {8, 4}, part(0, 32)},
                                 {"model.norm", DType::kF32, {32}, part(32, 32)},
                                 {"lm_head", DType::kF32, {4, 8}, part(64, 32)}},
                                {{"format", "pt"}})
                  .ok());
  return read_file(dir.file("sample"));
}

// A05
TEST(SafetensorsAttack, TruncatedAnywhere) {
  const TempDir dir;
  const std::string whole = sample_file(dir);
  EXPECT_EQ(problem(dir, whole), "accepted");
  for (size_t size = whole.size(); size-- > 0;) {
    std::filesystem::resize_file(dir.file("x.safetensors"), size);
    ASSERT_FALSE(SafetensorsFile::open(dir.file("x.safetensors")).ok()) << size;
  }
  EXPECT_NE(problem(dir, whole + "x"), "accepted");
}

// A05: a bit flip in the header is refused, or names, ranges and data stay well formed.
TEST(SafetensorsAttack, BitFlipsInTheHeader) {
  const TempDir dir;
  const std::string whole = sample_file(dir);
  uint64_t length = 0;
  std::memcpy(&length, whole.data(), 8);
  int refused = 0, accepted = 0;
  for (size_t bit = 0; bit < (8 + length) * 8; ++bit) {
    std::string flipped = whole;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << (bit % 8)));
    const auto prefix = std::as_bytes(std::span(flipped)).first(8);
    const auto claimed = safetensors_header_length(prefix, flipped.size());
    if (!claimed.ok()) {
      ++refused;
      continue;
    }
    const auto header = parse_safetensors_header(
        std::string_view(flipped).substr(8, static_cast<size_t>(*claimed)), flipped.size());
    if (!header.ok()) {
      EXPECT_FALSE(header.error().message.empty());
      ++refused;
      continue;
    }
    ++accepted;  // a flip in a name or in the metadata
    uint64_t covered = 8 + *claimed;
    for (const TensorInfo& tensor : header->tensors) {
      ASSERT_EQ(tensor.begin, covered);
      ASSERT_EQ(tensor.num_bytes(),
                static_cast<uint64_t>(tensor.num_elements() * dtype_size(tensor.dtype)));
      covered = tensor.end;
    }
    ASSERT_EQ(covered, flipped.size());
  }
  EXPECT_GT(refused, accepted);
}

// A07
TEST(SafetensorsAttack, NotARegularFile) {
  const TempDir dir;
  ASSERT_EQ(mkfifo(dir.file("fifo").c_str(), 0600), 0);
  for (const std::string& path : {dir.file("fifo"), std::string("/dev/zero"), dir.path()}) {
    const auto file = SafetensorsFile::open(path);
    ASSERT_FALSE(file.ok());
    EXPECT_THAT(file.error().message, HasSubstr("not a regular file"));
  }
  EXPECT_EQ(SafetensorsFile::open(dir.file("absent")).error().kind, ErrorKind::kNotFound);
}

TEST(SafetensorsAttack, FileThatShrinksWhileLoading) {
  const TempDir dir;
  const std::string whole = sample_file(dir);
  const auto file = open_bytes(dir, whole);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE(file->load("model.norm").ok());
  std::filesystem::resize_file(dir.file("x.safetensors"), whole.size() - 100);
  const auto last = file->load("lm_head");
  ASSERT_FALSE(last.ok());
  EXPECT_EQ(last.error().kind, ErrorKind::kDataLoss);
  EXPECT_THAT(last.error().message, HasSubstr("\"lm_head\""));
  EXPECT_THAT(last.error().message, HasSubstr("shrank"));
  // Grown back to its old size it reads as zeros: refused as changed.
  std::filesystem::resize_file(dir.file("x.safetensors"), whole.size());
  const auto zeros = file->load("lm_head");
  ASSERT_FALSE(zeros.ok());
  EXPECT_THAT(zeros.error().message, HasSubstr("changed while it was read"));
}

TEST(SafetensorsWriter, LeavesNothingBehindOnFailure) {
  const TempDir dir;
  EXPECT_FALSE(write_safetensors(dir.file("absent/x"), {}).ok());
  std::filesystem::create_directory(dir.file("taken"));
  EXPECT_FALSE(write_safetensors(dir.file("taken"), {}).ok());
  EXPECT_FALSE(std::filesystem::exists(dir.file("taken.incomplete")));
}

}  // namespace
}  // namespace weft
