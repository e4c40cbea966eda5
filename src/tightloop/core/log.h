#pragma once

#include <functional>
#include <string_view>

namespace tightloop {

enum class LogLevel { debug, info, warning };

/// Libraries talk through this sink; only `cli` decides what reaches a terminal.
using LogSink = std::function<void(LogLevel, std::string_view)>;
void set_log_sink(LogSink sink);
void log(LogLevel level, std::string_view text);

}  // namespace tightloop
