#pragma once

#include <set>
#include <string>
#include <string_view>
#include <vector>

namespace tightloop {

/// What keeps the text from being a well-formed XML document of elements, attributes and text
/// (no declarations, comments or sections), or "" when nothing does. For tests.
inline std::string xml_fault(std::string_view text) {
  std::vector<std::string> open;
  bool had_root = false;
  size_t at = 0;
  const auto where = [&](std::string_view what) {
    return std::string(what) + " at byte " + std::to_string(at) + ": " +
           std::string(text.substr(at, 40));
  };
  const auto is_name = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == ':' || c == '_';
  };
  const auto take_name = [&] {
    const size_t start = at;
    while (at < text.size() && is_name(text[at])) ++at;
    return std::string(text.substr(start, at - start));
  };
  const auto skip_blanks = [&] {
    while (at < text.size() && (text[at] == ' ' || text[at] == '\n')) ++at;
  };
  const auto bad_entity = [&] {
    for (std::string_view name : {"&amp;", "&lt;", "&gt;", "&quot;", "&#39;"}) {
      if (text.substr(at, name.size()) == name) return false;
    }
    return true;
  };
  while (at < text.size()) {
    const char c = text[at];
    if (c == '&' && bad_entity()) return where("bad entity");
    if (c != '<') {
      if (open.empty() && c != '\n' && c != ' ') return where("text outside");
      ++at;
      continue;
    }
    ++at;
    if (at < text.size() && text[at] == '/') {
      ++at;
      const std::string name = take_name();
      if (open.empty() || open.back() != name) return where("closes '" + name + "', not open");
      open.pop_back();
      if (at >= text.size() || text[at] != '>') return where("no end of a closing tag");
      ++at;
      continue;
    }
    const std::string name = take_name();
    if (name.empty()) return where("no name");
    if (open.empty() && had_root) return where("second root");
    had_root = true;
    std::set<std::string> attributes;
    for (skip_blanks(); at < text.size() && is_name(text[at]); skip_blanks()) {
      const std::string attribute = take_name();
      if (!attributes.insert(attribute).second) return where("attribute twice");
      if (text.substr(at, 2) != "=\"") return where("attribute without quotes");
      for (at += 2; at < text.size() && text[at] != '"'; ++at) {
        if (text[at] == '<' || (text[at] == '&' && bad_entity())) return where("bad attribute");
      }
      ++at;
    }
    if (text.substr(at, 2) == "/>") {
      at += 2;
    } else if (at < text.size() && text[at] == '>') {
      ++at;
      open.push_back(name);
    } else {
      return where("no end of a tag");
    }
  }
  if (!open.empty()) return "'" + open.back() + "' is not closed";
  return had_root ? "" : "no element";
}

}  // namespace tightloop
