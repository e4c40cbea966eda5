#pragma once

#include <string>
#include <string_view>

namespace tightloop {

/// The frame of every HTML page we write: head with the style of text and charts, the body, the
/// hover script. `title` is plain text, `body` is HTML.
std::string html_page(std::string_view title, std::string_view body);

}  // namespace tightloop
