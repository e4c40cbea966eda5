#include "tightloop/io/fetch.h"

#include <arpa/inet.h>
#include <csignal>
#include <fcntl.h>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <thread>
#include <unistd.h>

#include <gtest/gtest.h>

#include "tightloop/core/file.h"
#include "tightloop/core/log.h"
#include "tightloop/core/sha256.h"
#include "tightloop/core/unit_testing.h"

namespace tightloop {
namespace {

namespace fs = std::filesystem;

/// What the server does with one request.
struct Reply {
  int status = 200;
  std::string body;  // of the whole file
  bool honour_range = true;
  std::optional<int64_t> drop_after;      // bytes of the body after which the connection is cut
  std::optional<int64_t> claimed_length;  // Content-Length that lies
  std::string location;                   // for redirects
  std::optional<int64_t> range_shift;     // answers for another range than the one asked for
};

struct Request {
  std::string path;
  std::optional<int64_t> range_begin;
};

/// An HTTP server on 127.0.0.1 for one test: one connection at a time, one request each.
class TestServer {
 public:
  using Handler = std::function<Reply(const Request&, int count)>;  // count: from 0, per path

  explicit TestServer(Handler handler) : handler_(std::move(handler)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address = {};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(listener_, reinterpret_cast<sockaddr*>(&address), size) != 0 ||
        ::listen(listener_, 8) != 0 ||
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      throw std::runtime_error("cannot listen on 127.0.0.1");
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] { serve(); });
  }
  ~TestServer() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    ::close(listener_);
  }

  std::string url(const std::string& path) const {
    return fmt::format("http://127.0.0.1:{}/{}", port_, path);
  }
  std::vector<Request> requests() {
    const std::lock_guard lock(mutex_);
    return requests_;
  }

 private:
  void serve() {
    while (true) {
      const int connection = ::accept(listener_, nullptr, nullptr);
      if (connection < 0) return;
      answer(connection);
      ::close(connection);
    }
  }

  void answer(int connection) {
    std::string text;
    char buffer[4096];
    while (text.find("\r\n\r\n") == std::string::npos) {
      const ssize_t got = ::recv(connection, buffer, sizeof buffer, 0);
      if (got <= 0) return;
      text.append(buffer, static_cast<size_t>(got));
    }
    Request request;
    request.path = text.substr(5, text.find(' ', 5) - 5);
    const size_t range = text.find("Range: bytes=");
    if (range != std::string::npos) request.range_begin = std::stoll(text.substr(range + 13));
    int count = 0;
    {
      const std::lock_guard lock(mutex_);
      count = counts_[request.path]++;
      requests_.push_back(request);
    }
    const Reply reply = handler_(request, count);

    const auto total = static_cast<int64_t>(reply.body.size());
    int64_t begin = 0;
    int status = reply.status;
    std::string headers;
    if (!reply.location.empty()) headers += "Location: " + reply.location + "\r\n";
    if (status == 200 && request.range_begin && reply.honour_range) {
      begin = *request.range_begin;
      if (begin >= total) {
        status = 416;
        headers += fmt::format("Content-Range: bytes */{}\r\n", total);
      } else {
        status = 206;
        begin += reply.range_shift.value_or(0);
        headers += fmt::format("Content-Range: bytes {}-{}/{}\r\n", begin, total - 1, total);
      }
    }
    std::string body = status == 416 ? "" : reply.body.substr(static_cast<size_t>(begin));
    headers += fmt::format("Content-Length: {}\r\nConnection: close\r\n",
                           reply.claimed_length.value_or(static_cast<int64_t>(body.size())));
    if (reply.drop_after)
      body.resize(std::min(body.size(), static_cast<size_t>(*reply.drop_after)));
    const std::string out = fmt::format("HTTP/1.1 {} X\r\n{}\r\n{}", status, headers, body);
    for (size_t sent = 0; sent < out.size();) {
      const ssize_t n = ::send(connection, out.data() + sent, out.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }

  Handler handler_;
  int listener_ = -1;
  int port_ = 0;
  std::thread thread_;
  std::mutex mutex_;
  std::map<std::string, int> counts_;
  std::vector<Request> requests_;
};

std::string content(size_t bytes) {
  std::string text(bytes, '\0');
  for (size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>((i * 31 + i / 251) & 0xff);
  return text;
}

FetchOptions quick() {
  FetchOptions options;
  options.retries = 3;
  options.first_backoff_s = 0.001;
  return options;
}

class Fetch : public testing::Test {
 protected:
  Fetch() {
    set_log_sink([](LogLevel, std::string_view) {});
  }
  FetchItem item(const TestServer& server, bool checked = true) const {
    FetchItem item{server.url("a.bin"), "a.bin", std::nullopt, {}};
    if (checked) {
      item.bytes = static_cast<int64_t>(body_.size());
      item.sha256 = sha256_hex(body_);
    }
    return item;
  }
  /// The only file in the folder is the finished one.
  void expect_finished() const {
    EXPECT_EQ(read_file(dir_ / "a.bin"), body_);
    EXPECT_FALSE(fs::exists(dir_ / "a.bin.part"));
  }
  void leave_part(const std::string& bytes) const {
    std::ofstream(dir_ / "a.bin.part", std::ios::binary) << bytes;
  }

  const TempDir dir_;
  const std::string body_ = content(300000);
};

using enum FetchOutcome;

TEST_F(Fetch, DownloadsThenSkips) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  const std::string folder = dir_ / "sub/folder";
  std::vector<FetchProgress> seen;
  FetchOptions options = quick();
  options.progress = [&](const FetchProgress& progress) {
    seen.push_back(progress);
    return true;
  };
  EXPECT_EQ(fetch_files({item(server)}, folder, options), std::vector{downloaded});
  EXPECT_EQ(read_file(folder + "/a.bin"), body_);
  ASSERT_FALSE(seen.empty());
  EXPECT_EQ(seen.back().bytes_done, 300000);
  EXPECT_EQ(seen.back().bytes_total, 300000);
  EXPECT_EQ(fetch_files({item(server)}, folder, quick()), std::vector{already_there});
  EXPECT_EQ(fetch_files({item(server, false)}, folder, quick()), std::vector{already_there});
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(Fetch, ResumesAfterDropsWithinOneCall) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_, .drop_after = 70000}; });
  EXPECT_EQ(fetch_files({item(server)}, dir_.path(), quick()), std::vector{downloaded});
  expect_finished();
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 5u);
  EXPECT_EQ(requests[0].range_begin, std::nullopt);
  EXPECT_EQ(requests[1].range_begin, 70000);
  EXPECT_EQ(requests[4].range_begin, 280000);
}

TEST_F(Fetch, ResumesWhatAnEarlierCallLeft) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  leave_part(body_.substr(0, 123456));
  EXPECT_EQ(fetch_files({item(server, false)}, dir_.path(), quick()), std::vector{resumed});
  expect_finished();
  EXPECT_EQ(server.requests()[0].range_begin, 123456);
}

TEST_F(Fetch, WholePartNeedsNoBody) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  leave_part(body_);
  // Of unknown size: the server says 416 with the length of the file.
  EXPECT_EQ(fetch_files({item(server, false)}, dir_.path(), quick()), std::vector{resumed});
  expect_finished();
  fs::remove(dir_ / "a.bin");
  leave_part(body_);
  EXPECT_EQ(fetch_files({item(server)}, dir_.path(), quick()), std::vector{resumed});
  expect_finished();
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(Fetch, PartLongerThanTheFileIsDropped) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  for (const bool checked : {false, true}) {
    leave_part(body_ + "surplus");
    fetch_files({item(server, checked)}, dir_.path(), quick());
    expect_finished();
    fs::remove(dir_ / "a.bin");
  }
}

TEST_F(Fetch, ServerThatIgnoresRanges) {
  TestServer server([&](const Request&, int count) {
    Reply reply{.body = body_, .honour_range = false};
    if (count == 0) reply.drop_after = 1000;
    return reply;
  });
  fetch_files({item(server)}, dir_.path(), quick());
  expect_finished();
}

TEST_F(Fetch, ServerThatAnswersAnotherRange) {
  TestServer server([&](const Request&, int count) {
    Reply reply{.body = body_};
    if (count == 0) reply.range_shift = -10;
    return reply;
  });
  leave_part(body_.substr(0, 5000));
  fetch_files({item(server, false)}, dir_.path(), quick());
  expect_finished();
}

TEST_F(Fetch, FollowsRedirects) {
  TestServer server([&](const Request& request, int) {
    if (request.path == "a.bin")
      return Reply{.status = 302, .body = "moved", .location = "/real.bin"};
    return Reply{.body = body_};
  });
  leave_part(body_.substr(0, 5000));
  fetch_files({item(server)}, dir_.path(), quick());
  expect_finished();
}

TEST_F(Fetch, ServerErrorsAreTriedAgain) {
  TestServer server([&](const Request&, int count) {
    return count < 3 ? Reply{.status = 503, .body = "busy"} : Reply{.body = body_};
  });
  fetch_files({item(server)}, dir_.path(), quick());
  expect_finished();
  TestServer broken([&](const Request&, int) { return Reply{.status = 500}; });
  fs::remove(dir_ / "a.bin");
  const Error error = error_of([&] { fetch_files({item(broken)}, dir_.path(), quick()); });
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_EQ(error.message(), broken.url("a.bin") + ": cannot download: the server answers 500");
  EXPECT_EQ(broken.requests().size(), 4u);
}

TEST_F(Fetch, NotFoundFailsAtOnceAndKeepsThePart) {
  TestServer server([&](const Request&, int) { return Reply{.status = 404, .body = "<html>"}; });
  leave_part("abc");
  const Error error = error_of([&] { fetch_files({item(server)}, dir_.path(), quick()); });
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_EQ(error.message(), server.url("a.bin") + ": cannot download: the server answers 404");
  EXPECT_NE(error.hint().find("check the URL"), std::string::npos);
  EXPECT_EQ(server.requests().size(), 1u);
  EXPECT_EQ(read_file(dir_ / "a.bin.part"), "abc");
  EXPECT_FALSE(fs::exists(dir_ / "a.bin"));
}

TEST_F(Fetch, WrongHashLeavesNothing) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  FetchItem wrong = item(server);
  wrong.sha256 = std::string(64, '0');
  expect_error(ErrorKind::data, "sha256 is " + sha256_hex(body_) + ", expected 000",
               [&] { fetch_files({wrong}, dir_.path(), quick()); });
  EXPECT_TRUE(fs::is_empty(dir_.path()));
  EXPECT_EQ(server.requests().size(), 1u);
}

TEST_F(Fetch, PartOfAnotherVersionIsReplacedOnce) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  leave_part(std::string(1000, '?'));
  EXPECT_EQ(fetch_files({item(server)}, dir_.path(), quick()), std::vector{downloaded});
  expect_finished();
  EXPECT_EQ(server.requests().size(), 2u);
}

TEST_F(Fetch, WrongSize) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  FetchItem wrong = item(server);
  wrong.bytes = 299999;
  expect_error(ErrorKind::data, "sends more than the expected 299999 bytes",
               [&] { fetch_files({wrong}, dir_.path(), quick()); });
  wrong.bytes = 300001;
  expect_error(ErrorKind::data, "got 300000 bytes, expected 300001",
               [&] { fetch_files({wrong}, dir_.path(), quick()); });
  EXPECT_TRUE(fs::is_empty(dir_.path()));
}

TEST_F(Fetch, LengthThatIsNeverReached) {
  TestServer server([&](const Request&, int) {
    return Reply{.body = body_, .honour_range = false, .claimed_length = 400000};
  });
  expect_error(ErrorKind::io, "cannot download",
               [&] { fetch_files({item(server, false)}, dir_.path(), quick()); });
  EXPECT_FALSE(fs::exists(dir_ / "a.bin"));
}

TEST_F(Fetch, FinishedFileThatDiffersIsReplaced) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  std::ofstream(dir_ / "a.bin") << "something else";
  EXPECT_EQ(fetch_files({item(server)}, dir_.path(), quick()), std::vector{downloaded});
  expect_finished();
}

TEST_F(Fetch, EarlierFilesStayWhenALaterOneFails) {
  TestServer server([&](const Request& request, int) {
    return request.path == "a.bin" ? Reply{.body = body_} : Reply{.status = 404};
  });
  expect_error(ErrorKind::io, "b.bin", [&] {
    fetch_files({item(server), {server.url("b.bin"), "b.bin", std::nullopt, {}}}, dir_.path(),
                quick());
  });
  EXPECT_EQ(read_file(dir_ / "a.bin"), body_);
}

TEST_F(Fetch, StopsWhenAskedAndContinuesLater) {
  TestServer server([&](const Request&, int count) {
    Reply reply{.body = body_};
    if (count == 0) reply.drop_after = 100000;
    return reply;
  });
  FetchOptions options = quick();
  options.first_backoff_s = 60.0;  // the stop must not wait for this
  options.progress = [](const FetchProgress& progress) { return progress.bytes_done < 100000; };
  expect_error(ErrorKind::interrupted, "stopped",
               [&] { fetch_files({item(server)}, dir_.path(), options); });
  EXPECT_EQ(fs::file_size(dir_ / "a.bin.part"), 100000u);
  EXPECT_EQ(fetch_files({item(server)}, dir_.path(), quick()), std::vector{resumed});
  expect_finished();
}

TEST_F(Fetch, FullDiskIsNamedAndThePartStays) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  std::signal(SIGXFSZ, SIG_IGN);
  rlimit before = {};
  ::getrlimit(RLIMIT_FSIZE, &before);
  rlimit limit = before;
  limit.rlim_cur = 65536;
  ::setrlimit(RLIMIT_FSIZE, &limit);
  const Error error = error_of([&] { fetch_files({item(server)}, dir_.path(), quick()); });
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_EQ(error.message(), (dir_ / "a.bin.part") + ": cannot write: File too large");
  EXPECT_EQ(fetch_files({item(server)}, dir_.path(), quick()), std::vector{resumed});
  expect_finished();
}

TEST_F(Fetch, TwoDownloadsOfOneFile) {
  TestServer server([&](const Request&, int) { return Reply{.body = body_}; });
  leave_part("abc");
  const FileDescriptor other(::open((dir_ / "a.bin.part").c_str(), O_RDONLY | O_CLOEXEC));
  ASSERT_EQ(::flock(other.get(), LOCK_EX), 0);
  expect_error(ErrorKind::io, "another process is downloading",
               [&] { fetch_files({item(server)}, dir_.path(), quick()); });
}

TEST_F(Fetch, BadItems) {
  const auto fetch_one = [&](const FetchItem& item) { fetch_files({item}, dir_.path(), quick()); };
  expect_error(ErrorKind::usage, "is no file name", [&] {
    fetch_one({"http://x/y", "../y", std::nullopt, {}});
  });
  expect_error(ErrorKind::usage, "no sha256", [&] {
    fetch_one({"http://x/y", "y", std::nullopt, "12"});
  });
  expect_error(ErrorKind::usage, "cannot download", [&] {
    fetch_one({"file:///etc/passwd", "y", std::nullopt, {}});
  });
}

TEST_F(Fetch, NobodyListens) {
  FetchItem item;
  {
    TestServer server([](const Request&, int) { return Reply{}; });
    item = {server.url("a.bin"), "a.bin", std::nullopt, {}};
  }
  const Error error = error_of([&] { fetch_files({item}, dir_.path(), quick()); });
  EXPECT_EQ(error.kind(), ErrorKind::io);
  EXPECT_NE(error.hint().find("continues"), std::string::npos);
}

TEST(FetchList, Fineweb10b) {
  const auto items = fineweb10b_list(2);
  ASSERT_EQ(items.size(), 3u);
  EXPECT_EQ(items[0].name, "fineweb_val_000000.bin");
  EXPECT_EQ(items[2].url,
            "https://huggingface.co/datasets/kjj0/fineweb10B-gpt2/resolve/main/"
            "fineweb_train_000002.bin");
  EXPECT_EQ(fineweb10b_list(103).size(), 104u);
  for (const int count : {0, 104})
    expect_error(ErrorKind::usage, "it has 1 to 103", [&] { fineweb10b_list(count); });
}

TEST(FetchList, TextForm) {
  const std::string digest(64, 'A');
  const auto items = parse_fetch_list(
      "# comment\n\nhttp://h/p/x.bin?download=1 # why\n"
      "https://h/y 123 " +
          digest + " z.bin\n",
      "list.txt");
  ASSERT_EQ(items.size(), 2u);
  EXPECT_EQ(items[0].name, "x.bin");
  EXPECT_EQ(items[0].bytes, std::nullopt);
  EXPECT_EQ(items[1].name, "z.bin");
  EXPECT_EQ(items[1].bytes, 123);
  EXPECT_EQ(items[1].sha256, std::string(64, 'a'));
  const auto expect_bad = [](std::string_view part, std::string_view text) {
    expect_error(ErrorKind::data, part, [&] { parse_fetch_list(text, "l"); });
  };
  expect_bad("l:2: 'y' is no URL", "http://h/x\ny\n");
  expect_bad("l:1: got 'b'", "http://h/x a b\n");
  expect_bad("l:1: http://h/: '' is no file name", "http://h/\n");
  expect_bad("is no file name", "http://h/x ../x\n");
}

}  // namespace
}  // namespace tightloop
