// Tokenizer files: Hugging Face's tokenizer.json, GPT-2's vocab.json + merges.txt.

#include <algorithm>
#include <filesystem>

#include <nlohmann/json.hpp>

#include "tightloop/core/error.h"
#include "tightloop/core/file.h"
#include "tightloop/core/json.h"
#include "tightloop/text/tokenizer_impl.h"
#include "tightloop/text/unicode.h"

namespace tightloop {
namespace {

constexpr int64_t kMostFileBytes = int64_t{1} << 30;
constexpr char kNoSplit[] = "(?s).+";
constexpr char kWhitespaceSplit[] = "\\S+";
constexpr char kWhitespace[] = "\\w+|[^\\w\\s]+";

/// The value as an id below `limit`, if it is one.
std::optional<int32_t> id_of(const Json& value, int64_t limit) {
  const auto most = static_cast<uint64_t>(limit);
  if (!value.is_number_unsigned() || value.get<uint64_t>() >= most) return std::nullopt;
  return static_cast<int32_t>(value.get<uint64_t>());
}

/// A value inside a file, and how to name it in errors: `tokenizer.json: model.vocab`.
struct Field {
  const Json* value;
  std::string path;

  bool is_null() const { return value == nullptr || value->is_null(); }
  /// The member `name`; null when there is none.
  Field at(const char* name) const {
    const auto it = value->find(name);
    return {it == value->end() ? nullptr : &*it,
            path + (path.ends_with(": ") ? "" : ".") + std::string(name)};
  }
  Field at(size_t i) const { return {&(*value)[i], fmt::format("{}[{}]", path, i)}; }
  std::string shown() const {
    if (value == nullptr) return "nothing";
    std::string text = value->dump(-1, ' ', false, Json::error_handler_t::replace);
    if (text.size() > 60) text = text.substr(0, 57) + "...";
    return text;
  }
  [[noreturn]] void wrong(const std::string& expected) const {
    fail(ErrorKind::data, "{}: got {}, expected {}", path, shown(), expected);
  }
  [[noreturn]] void refuse(const std::string& expected) const {
    fail(ErrorKind::unsupported, "{}: {} is not supported, expected {}", path, shown(), expected);
  }
  const Field& object() const {
    if (value == nullptr || !value->is_object()) wrong("an object");
    return *this;
  }
  const Field& array() const {
    if (value == nullptr || !value->is_array()) wrong("a list");
    return *this;
  }
  const std::string& string() const {
    if (value == nullptr || !value->is_string()) wrong("a string");
    return value->get_ref<const std::string&>();
  }
  bool flag(bool otherwise) const {
    if (is_null()) return otherwise;
    if (!value->is_boolean()) wrong("true or false");
    return value->get<bool>();
  }
  /// An id below `limit`.
  int32_t id(int64_t limit) const {
    if (value == nullptr || !value->is_number_integer()) wrong("an id");
    const std::optional<int32_t> found = id_of(*value, limit);
    if (!found) wrong(fmt::format("an id from 0 to {}, for ids have no holes", limit - 1));
    return *found;
  }
};

/// Names to ids. A name is what the file calls a token: letters of the byte alphabet, or a word.
using Names = std::unordered_map<std::string, int32_t>;

/// Reads {"name": id, …} together with the added tokens into dense `parts.tokens` (still names).
Names read_vocab(const Field& vocab, const Field& added, TokenizerParts& parts) {
  vocab.object();
  Names names;
  const bool has_added = !added.is_null();
  if (has_added) added.array();
  size_t total = vocab.value->size();
  if (has_added)
    for (size_t i = 0; i < added.value->size(); ++i)
      if (!vocab.value->contains(added.at(i).object().at("content").string())) ++total;
  const auto limit = static_cast<int64_t>(total);
  std::vector<bool> taken(total, false);
  parts.tokens.resize(total);
  // `field_of` names the value in errors; a vocabulary has too many to name each beforehand.
  const auto take = [&](const Json* value, const std::string& name, const auto& field_of) {
    const auto found = value == nullptr ? std::nullopt : id_of(*value, limit);
    const int32_t id = found ? *found : field_of().id(limit);
    const auto i = static_cast<size_t>(id);
    if (taken[i])
      fail(ErrorKind::data, "{}: id {} is taken by \"{}\" already", field_of().path, id,
           parts.tokens[i]);
    taken[i] = true;
    parts.tokens[i] = name;
    names.emplace(name, id);
    return id;
  };
  names.reserve(total);
  for (const auto& [name, id] : vocab.value->items())
    take(&id, name, [&, &key = name, &value = id] {
      return Field{&value, fmt::format("{}[\"{}\"]", vocab.path, key)};
    });
  if (!has_added) return names;
  for (size_t i = 0; i < added.value->size(); ++i) {
    const Field token = added.at(i).object();
    const std::string& name = token.at("content").string();
    for (const char* option : {"single_word", "lstrip", "rstrip"})
      if (token.at(option).flag(false)) token.at(option).refuse("false");
    const Field id_field = token.at("id");
    int32_t id = 0;
    if (const auto it = names.find(name); it != names.end()) {
      id = id_field.id(limit);
      if (id != it->second)
        fail(ErrorKind::data, "{}: got {}, but \"{}\" has id {} already", id_field.path, id, name,
             it->second);
    } else {
      id = take(id_field.value, name, [&] { return id_field; });
    }
    parts.added.push_back({name, id, token.at("special").flag(false)});
  }
  return names;
}

/// Adds the merge of two names; `where()` names it in errors.
void add_merge(std::string_view left,
               std::string_view right,
               const Names& names,
               TokenizerParts& parts,
               const auto& where) {
  const auto find = [&](const std::string& name) {
    const auto it = names.find(name);
    if (it == names.end())
      fail(ErrorKind::data, "{}: \"{}\" is not in the vocabulary", where(), name);
    return it->second;
  };
  std::string name(left);
  const int32_t left_id = find(name);
  const int32_t right_id = find(std::string(right));
  name += right;
  parts.merges.push_back({left_id, right_id, find(name)});
}

/// "a b" split at its only blank; empty when there is none, or two.
std::optional<std::pair<std::string_view, std::string_view>> split_pair(std::string_view text) {
  const size_t blank = text.find(' ');
  if (blank == std::string_view::npos || text.find(' ', blank + 1) != std::string_view::npos)
    return std::nullopt;
  return std::pair(text.substr(0, blank), text.substr(blank + 1));
}

void read_merge(const Field& merges, size_t i, const Names& names, TokenizerParts& parts) {
  const Json& merge = (*merges.value)[i];
  const auto where = [&] { return merges.at(i).path; };
  if (merge.is_array()) {  // ["a", "b"]
    if (merge.size() != 2 || !merge[0].is_string() || !merge[1].is_string())
      merges.at(i).wrong("two tokens");
    return add_merge(merge[0].get_ref<const std::string&>(), merge[1].get_ref<const std::string&>(),
                     names, parts, where);
  }
  const auto pair = split_pair(merges.at(i).string());
  if (!pair) merges.at(i).wrong("two tokens with one blank between");
  add_merge(pair->first, pair->second, names, parts, where);
}

/// Turns the names of text tokens into the bytes they stand for.
void names_to_bytes(const std::string& where, TokenizerParts& parts) {
  std::vector<bool> added(parts.tokens.size(), false);
  for (const AddedToken& token : parts.added) added[static_cast<size_t>(token.id)] = true;
  for (size_t i = 0; i < parts.tokens.size(); ++i) {
    if (added[i]) continue;
    auto bytes = from_byte_alphabet(parts.tokens[i]);
    if (!bytes || bytes->empty())
      fail(ErrorKind::data, "{}: token {} (\"{}\") is not made of byte-level letters", where, i,
           parts.tokens[i]);
    parts.tokens[i] = std::move(*bytes);
  }
}

void read_normalizer(const Field& normalizer, TokenizerParts& parts) {
  if (normalizer.is_null()) return;
  const std::string& type = normalizer.object().at("type").string();
  if (type == "NFC") {
    parts.nfc = true;
  } else if (type == "Sequence") {
    const Field list = normalizer.at("normalizers").array();
    for (size_t i = 0; i < list.value->size(); ++i) {
      if (list.at(i).object().at("type").string() == "Sequence")
        list.at(i).refuse("a normalizer that is not a sequence");
      read_normalizer(list.at(i), parts);
    }
  } else {
    normalizer.at("type").refuse("null or NFC");
  }
}

struct Pretokenizer {
  bool split = false;
  bool byte_level = false;
};

void read_pretokenizer(const Field& field, Pretokenizer& seen, TokenizerParts& parts) {
  const std::string& type = field.object().at("type").string();
  const auto split_by = [&](const std::string& rule, bool keep_gaps) {
    if (seen.split) field.refuse("one split rule");
    seen.split = true;
    parts.rule = rule;
    parts.keep_gaps = keep_gaps;
  };
  if (type == "Split") {
    const Field regex = field.at("pattern").object().at("Regex");
    if (regex.is_null()) field.at("pattern").refuse("a \"Regex\"");
    const std::string& behavior = field.at("behavior").string();
    const bool invert = field.at("invert").flag(false);
    if (behavior == "Isolated")
      split_by(regex.string(), true);
    else if (behavior == "Removed" && invert)
      split_by(regex.string(), false);
    else
      field.at("behavior").refuse("\"Isolated\", or \"Removed\" with \"invert\": true");
  } else if (type == "ByteLevel") {
    if (seen.byte_level) field.refuse("one ByteLevel");
    seen.byte_level = true;
    if (field.at("add_prefix_space").flag(true)) field.at("add_prefix_space").refuse("false");
    if (field.at("use_regex").flag(true)) split_by(kGpt2Split, true);
  } else if (type == "WhitespaceSplit") {
    split_by(kWhitespaceSplit, false);
  } else if (type == "Whitespace") {
    split_by(kWhitespace, false);
  } else {
    field.at("type").refuse("Split, ByteLevel, Whitespace or WhitespaceSplit");
  }
}

void read_pretokenizers(const Field& field, Pretokenizer& seen, TokenizerParts& parts) {
  if (field.is_null()) return;
  if (field.object().at("type").string() != "Sequence")
    return read_pretokenizer(field, seen, parts);
  const Field list = field.at("pretokenizers").array();
  for (size_t i = 0; i < list.value->size(); ++i) read_pretokenizer(list.at(i), seen, parts);
}

void read_bpe(const Field& file, const Field& model, TokenizerParts& parts) {
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (!model.at(affix).is_null() && !model.at(affix).string().empty())
      model.at(affix).refuse("null");
  if (!model.at("dropout").is_null() && *model.at("dropout").value != 0)
    model.at("dropout").refuse("null");
  if (model.at("byte_fallback").flag(false)) model.at("byte_fallback").refuse("false");
  parts.ignore_merges = model.at("ignore_merges").flag(false);
  const Names names = read_vocab(model.at("vocab"), file.at("added_tokens"), parts);
  const Field merges = model.at("merges").array();
  parts.merges.reserve(merges.value->size());
  for (size_t i = 0; i < merges.value->size(); ++i) read_merge(merges, i, names, parts);
  names_to_bytes(model.path + ".vocab", parts);
}

void read_word_level(const Field& file, const Field& model, TokenizerParts& parts) {
  parts.word_level = true;
  const Names names = read_vocab(model.at("vocab"), file.at("added_tokens"), parts);
  if (const Field unknown = model.at("unk_token"); !unknown.is_null())
    if (const auto it = names.find(unknown.string()); it != names.end()) parts.unknown = it->second;
  const Field decoder = file.at("decoder");
  if (decoder.is_null()) return;
  const Field type = decoder.object().at("type");
  if (type.string() != "WordPiece") type.refuse("null or WordPiece");
  parts.attach_marks = decoder.at("cleanup").flag(true);
}

Tokenizer from_gpt2_files(const Gpt2Files& files,
                          const std::string& vocab_name,
                          const std::string& merges_name) {
  TokenizerParts parts;
  parts.rule = kGpt2Split;
  const Json vocab = parse_json(files.vocab_json, vocab_name);
  const Field root{&vocab, vocab_name + ": top level"};
  const Names names = read_vocab(root, {nullptr, ""}, parts);
  if (const auto it = names.find("<|endoftext|>"); it != names.end())
    parts.added.push_back({it->first, it->second, true});

  std::string_view left = files.merges_txt;
  for (int64_t line_number = 1; !left.empty(); ++line_number) {
    const size_t end = std::min(left.find('\n'), left.size());
    std::string_view line = left.substr(0, end);
    left.remove_prefix(std::min(end + 1, left.size()));
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (line.empty() || (line_number == 1 && line.starts_with("#version"))) continue;
    const auto where = [&] { return fmt::format("{}: line {}", merges_name, line_number); };
    if (valid_utf8_prefix(line) != static_cast<int64_t>(line.size()))
      fail(ErrorKind::data, "{}: not valid UTF-8", where());
    const auto pair = split_pair(line);
    if (!pair)
      fail(ErrorKind::data, "{}: got \"{}\", expected two tokens with one blank between", where(),
           line.substr(0, 60));
    add_merge(pair->first, pair->second, names, parts, where);
  }
  names_to_bytes(vocab_name, parts);
  try {
    return TokenizerBuilder::build(std::move(parts));
  } catch (Error& error) {
    throw error.with_context(vocab_name + " and " + merges_name);
  }
}

template <typename T>
void append(OrderedJson& object, std::string key, T&& value) {
  // Plain emplace searches for the key first, which is quadratic over a vocabulary.
  using Entry = OrderedJson::object_t::value_type;
  static_cast<std::vector<Entry>&>(object.get_ref<OrderedJson::object_t&>())
      .emplace_back(std::move(key), std::forward<T>(value));
}

std::string alphabet_name(std::string_view bytes) {
  std::string name;
  append_byte_alphabet(bytes, name);
  return name;
}

/// Token names by id, as the files have them.
std::vector<std::string> names_by_id(const Tokenizer& tokenizer) {
  std::vector<std::string> names(static_cast<size_t>(tokenizer.vocab_size()));
  for (const AddedToken& token : tokenizer.added_tokens())
    names[static_cast<size_t>(token.id)] = token.name;
  for (size_t i = 0; i < names.size(); ++i) {
    if (!names[i].empty()) continue;
    std::string_view bytes = tokenizer.token_bytes(static_cast<int32_t>(i));
    if (!tokenizer.is_word_level()) {
      names[i] = alphabet_name(bytes);
    } else {
      if (bytes.starts_with(' ')) bytes.remove_prefix(1);
      names[i] = bytes;
    }
  }
  return names;
}

OrderedJson vocab_json(const std::vector<std::string>& names) {
  OrderedJson vocab = OrderedJson::object();
  for (size_t i = 0; i < names.size(); ++i) append(vocab, names[i], i);
  return vocab;
}

}  // namespace

Tokenizer Tokenizer::from_json(std::string_view text, const std::string& name) {
  const Json parsed = parse_json(text, name);
  const Field file{&parsed, name + ": "};
  if (!parsed.is_object()) fail(ErrorKind::data, "{}: the top level is not an object", name);
  const Field model = file.at("model").object();
  TokenizerParts parts;
  read_normalizer(file.at("normalizer"), parts);
  Pretokenizer seen;
  read_pretokenizers(file.at("pre_tokenizer"), seen, parts);
  const Field type = model.at("type");
  const std::string kind =
      type.is_null() && model.value->contains("merges") ? "BPE" : type.string();
  if (kind == "BPE") {
    if (!seen.byte_level) file.at("pre_tokenizer").refuse("one that ends in ByteLevel");
    if (!seen.split) parts.rule = kNoSplit;
    if (const Field decoder = file.at("decoder"); !decoder.is_null())
      if (const Field d = decoder.object().at("type"); d.string() != "ByteLevel")
        d.refuse("ByteLevel");
    read_bpe(file, model, parts);
  } else if (kind == "WordLevel") {
    if (!seen.split || seen.byte_level)
      file.at("pre_tokenizer").refuse("Split, Whitespace or WhitespaceSplit");
    read_word_level(file, model, parts);
  } else {
    type.refuse("BPE or WordLevel");
  }
  try {
    return TokenizerBuilder::build(std::move(parts));
  } catch (Error& error) {
    throw error.with_context(name);
  }
}

Tokenizer Tokenizer::from_gpt2(const Gpt2Files& files) {
  return from_gpt2_files(files, "vocab.json", "merges.txt");
}

Tokenizer Tokenizer::load(const std::string& path) {
  namespace fs = std::filesystem;
  const fs::path given(path);
  std::error_code error;
  if (!fs::is_directory(given, error)) {
    if (!fs::exists(given, error))
      throw Error(ErrorKind::io, fmt::format("{}: no such tokenizer file", path))
          .with_hint("make one: `tightloop tokenizer train TEXT -o tokenizer.json`");
    return from_json(read_file(path, kMostFileBytes), path);
  }
  if (fs::exists(given / "tokenizer.json", error)) {
    const fs::path file = given / "tokenizer.json";
    return from_json(read_file(file.string(), kMostFileBytes), file.string());
  }
  constexpr std::pair<const char*, const char*> kPairs[] = {{"vocab.json", "merges.txt"},
                                                            {"encoder.json", "vocab.bpe"}};
  for (const auto& [vocab_name, merges_name] : kPairs) {
    const fs::path vocab = given / vocab_name, merges = given / merges_name;
    if (fs::exists(vocab, error) && fs::exists(merges, error))
      return from_gpt2_files(
          {read_file(vocab.string(), kMostFileBytes), read_file(merges.string(), kMostFileBytes)},
          vocab.string(), merges.string());
  }
  fail(ErrorKind::io,
       "{}: no tokenizer here: expected tokenizer.json, vocab.json + merges.txt or encoder.json + "
       "vocab.bpe",
       path);
}

std::string Tokenizer::to_json() const {
  const Impl& impl = *impl_;
  OrderedJson file = {{"version", "1.0"}, {"truncation", nullptr}, {"padding", nullptr}};
  OrderedJson added = OrderedJson::array();
  for (const AddedToken& token : impl.added)
    added.push_back({{"id", token.id},
                     {"content", token.name},
                     {"single_word", false},
                     {"lstrip", false},
                     {"rstrip", false},
                     {"normalized", false},
                     {"special", token.special}});
  file["added_tokens"] = std::move(added);
  file["normalizer"] = impl.nfc ? OrderedJson{{"type", "NFC"}} : OrderedJson(nullptr);

  const std::string& rule = split_rule();
  const OrderedJson split = {{"type", "Split"},
                             {"pattern", {{"Regex", rule}}},
                             {"behavior", impl.keep_gaps ? "Isolated" : "Removed"},
                             {"invert", !impl.keep_gaps}};
  const auto byte_level = [](bool use_regex) {
    return OrderedJson{{"type", "ByteLevel"},
                       {"add_prefix_space", false},
                       {"trim_offsets", true},
                       {"use_regex", use_regex}};
  };
  if (impl.word_level)
    file["pre_tokenizer"] = split;
  else if (rule == kGpt2Split && impl.keep_gaps)
    file["pre_tokenizer"] = byte_level(true);
  else
    file["pre_tokenizer"] = {{"type", "Sequence"},
                             {"pretokenizers", OrderedJson::array({split, byte_level(false)})}};
  file["post_processor"] = nullptr;
  if (!impl.word_level)
    file["decoder"] = byte_level(true);
  else if (impl.attach_marks)
    file["decoder"] = {{"type", "WordPiece"}, {"prefix", "##"}, {"cleanup", true}};
  else
    file["decoder"] = nullptr;

  const std::vector<std::string> names = names_by_id(*this);
  OrderedJson model;
  if (impl.word_level) {
    model = {{"type", "WordLevel"}, {"vocab", vocab_json(names)}};
    model["unk_token"] = impl.unknown ? names[static_cast<size_t>(*impl.unknown)] : "<|unk|>";
  } else {
    model = {{"type", "BPE"},
             {"dropout", nullptr},
             {"unk_token", nullptr},
             {"continuing_subword_prefix", nullptr},
             {"end_of_word_suffix", nullptr},
             {"fuse_unk", false},
             {"byte_fallback", false},
             {"ignore_merges", impl.ignore_merges},
             {"vocab", vocab_json(names)}};
    OrderedJson merges = OrderedJson::array();
    for (const Merge& merge : impl.merges)
      merges.push_back(OrderedJson::array(
          {names[static_cast<size_t>(merge.left)], names[static_cast<size_t>(merge.right)]}));
    model["merges"] = std::move(merges);
  }
  file["model"] = std::move(model);
  return file.dump(2) + "\n";
}

Gpt2Files Tokenizer::to_gpt2() const {
  const Impl& impl = *impl_;
  const char* reason = nullptr;
  if (impl.word_level)
    reason = "a word-level tokenizer has no merges";
  else if (split_rule() != kGpt2Split || !impl.keep_gaps)
    reason = "they imply GPT-2's split rule and this tokenizer has another";
  else if (impl.nfc || impl.ignore_merges)
    reason = "they have no place for its normaliser or merge option";
  for (const AddedToken& token : impl.added)
    if (reason == nullptr && token.name != "<|endoftext|>")
      reason = "they name no special token but <|endoftext|>";
  if (reason != nullptr)
    throw Error(ErrorKind::unsupported,
                fmt::format("vocab.json + merges.txt cannot hold this tokenizer: {}", reason))
        .with_hint("write tokenizer.json instead");
  const std::vector<std::string> names = names_by_id(*this);
  Gpt2Files files{vocab_json(names).dump(), "#version: 0.2\n"};
  for (const Merge& merge : impl.merges)
    files.merges_txt += names[static_cast<size_t>(merge.left)] + " " +
                        names[static_cast<size_t>(merge.right)] + "\n";
  return files;
}

}  // namespace tightloop
