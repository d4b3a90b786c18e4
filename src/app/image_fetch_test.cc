#include "app/image_fetch.h"

#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

namespace weft {
namespace {

bool is_public(const char* text) {
  sockaddr_storage storage = {};
  auto* v4 = reinterpret_cast<sockaddr_in*>(&storage);
  auto* v6 = reinterpret_cast<sockaddr_in6*>(&storage);
  if (inet_pton(AF_INET, text, &v4->sin_addr) == 1) {
    v4->sin_family = AF_INET;
  } else {
    EXPECT_EQ(inet_pton(AF_INET6, text, &v6->sin6_addr), 1) << text;
    v6->sin6_family = AF_INET6;
  }
  return is_public_address(reinterpret_cast<const sockaddr*>(&storage));
}

TEST(ImageFetch, KnowsPublicAddresses) {
  for (const char* text : {"8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.128.0.1",
                           "192.169.0.1", "2606:4700::1111", "2a00:1450::1", "64:ff9b::808:808"}) {
    EXPECT_TRUE(is_public(text)) << text;
  }
  for (const char* text : {"0.0.0.0",
                           "10.1.2.3",
                           "100.64.0.1",
                           "100.127.255.255",
                           "127.0.0.1",
                           "127.255.255.255",
                           "169.254.169.254",
                           "172.16.0.1",
                           "172.31.255.255",
                           "192.0.0.1",
                           "192.168.1.1",
                           "198.18.0.1",
                           "203.0.113.5",
                           "224.0.0.1",
                           "255.255.255.255",
                           "::",
                           "::1",
                           "::ffff:127.0.0.1",
                           "::ffff:8.8.8.8",
                           "::127.0.0.1",
                           "64:ff9b::a9fe:a9fe",
                           "fc00::1",
                           "fd12::1",
                           "fe80::1",
                           "fec0::1",
                           "ff02::1",
                           "2001:db8::1",
                           "2001::1",
                           "2002:7f00:1::",
                           "2002:a9fe:a9fe::1"}) {
    EXPECT_FALSE(is_public(text)) << text;
  }
}

TEST(ImageFetch, DomainsHaveTheirSubdomains) {
  const std::vector<std::string> domains = {"example.com"};
  EXPECT_TRUE(host_is_allowed("example.com", domains));
  EXPECT_TRUE(host_is_allowed("IMG.Example.COM", domains));
  EXPECT_FALSE(host_is_allowed("notexample.com", domains));
  EXPECT_FALSE(host_is_allowed("example.com.evil.org", domains));
  EXPECT_FALSE(host_is_allowed("example.com.", domains));
  EXPECT_TRUE(host_is_allowed("anything", {}));
}

/// Counts who connects to a port of this machine.
class Sink {
 public:
  Sink() : socket_(::socket(AF_INET, SOCK_STREAM, 0)) {
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_ANY);
    EXPECT_EQ(bind(socket_, reinterpret_cast<sockaddr*>(&address), sizeof(address)), 0);
    EXPECT_EQ(listen(socket_, 64), 0);
    socklen_t size = sizeof(address);
    getsockname(socket_, reinterpret_cast<sockaddr*>(&address), &size);
    port_ = std::to_string(ntohs(address.sin_port));
    thread_ = std::thread([this] {
      for (int client; (client = accept(socket_, nullptr, nullptr)) >= 0; close(client)) {
        ++connections_;
      }
    });
  }
  ~Sink() {
    shutdown(socket_, SHUT_RDWR);
    thread_.join();
    close(socket_);
  }
  const std::string& port() const { return port_; }
  int connections() const { return connections_; }

 private:
  int socket_;
  std::string port_;
  std::atomic<int> connections_{0};
  std::thread thread_;
};

/// Attack list A50: whatever the form, nobody connects to this machine.
TEST(ImageFetch, NoFormOfAPrivateAddressIsReached) {
  Sink sink;
  const ImageFetchOptions options{.enabled = true, .timeout_seconds = 2};
  const std::string port = ":" + sink.port();
  for (const std::string& url :
       std::vector<std::string>{"http://127.0.0.1" + port,
                                "http://localhost" + port,
                                "http://0" + port,
                                "http://0.0.0.0" + port,
                                "http://0x7f.1" + port,
                                "http://2130706433" + port,
                                "http://017700000001" + port,
                                "http://127.1" + port,
                                "http://[::1]" + port,
                                "http://[::]" + port,
                                "http://[::ffff:127.0.0.1]" + port,
                                "http://[::ffff:a9fe:a9fe]" + port,
                                "http://169.254.169.254/latest/meta-data",
                                "http://127.0.0.1" + port + "#@example.com",
                                "http://user@127.0.0.1" + port,
                                "http://user:password@127.0.0.1" + port,
                                "http://name.invalid\\@127.0.0.1" + port,
                                "http://name.invalid#@127.0.0.1" + port,
                                "http://127.0.0.1 " + port,
                                "http://127。0。0。1" + port,
                                "http://127%2e0%2e0%2e1" + port,
                                "file:///etc/passwd",
                                "gopher://127.0.0.1" + port,
                                "dict://127.0.0.1" + port,
                                "ftp://127.0.0.1" + port,
                                "http:///127.0.0.1" + port,
                                "http://",
                                "//127.0.0.1" + port,
                                "127.0.0.1" + port,
                                "http://127.0.0.1" + port + "\r\nHost: x",
                                std::string(10000, 'a')}) {
    const auto got = fetch_image(url, options);
    ASSERT_FALSE(got.ok()) << url;
    EXPECT_TRUE(got.error().message == "the URL is not a plain http or https one" ||
                got.error().message == "this server fetches no images from that host" ||
                got.error().message == "the image can't be fetched")
        << got.error().message;
  }
  EXPECT_EQ(sink.connections(), 0);
}

TEST(ImageFetch, OtherDomainsAreRefusedBeforeTheyAreLookedUp) {
  const ImageFetchOptions options{.enabled = true, .domains = {"example.com"}};
  EXPECT_EQ(fetch_image("https://example.org/a.png", options).error().message,
            "this server fetches no images from that host");
}

TEST(ImageFetch, OffMeansOff) {
  EXPECT_FALSE(image_fetcher({}));
  EXPECT_TRUE(image_fetcher({.enabled = true}));
}

}  // namespace
}  // namespace weft
