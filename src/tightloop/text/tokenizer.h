#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tightloop {

/// What `encode` does where the text contains a special token's name, such as "<|bos|>".
enum class SpecialTokens {
  as_text,    // ordinary characters: text from outside can never produce a special token
  recognise,  // becomes the special token's id (Hugging Face's default)
};

/// A token that is not made by splitting and merging text: it has a name and an id.
struct AddedToken {
  std::string name;
  int32_t id = 0;
  /// Markers such as <|bos|>. False for tokens like <think>, which count as text in bits per byte.
  bool special = true;
};

/// GPT-2's pair of files, as text. `vocab_json` is also known as encoder.json, `merges_txt` as
/// vocab.bpe.
struct Gpt2Files {
  std::string vocab_json;
  std::string merges_txt;
};

/// Text to token ids and back. Two kinds: byte-level BPE (GPT-2, Qwen, nanochat, our own training)
/// and word-level (the built-in story corpus). Immutable and cheap to copy (copies share one
/// table); every const function may be called from several threads at once.
///
/// `encode` never adds tokens: a caller who wants a BOS prepends `*bos_id()`.
/// BPE: Sennrich et al. 2016 (arXiv:1508.07909); the byte alphabet is GPT-2's.
class Tokenizer {
 public:
  /// Reads a tokenizer.json, or a folder that has tokenizer.json, vocab.json + merges.txt or
  /// encoder.json + vocab.bpe (looked for in this order). Error{io} when there is none;
  /// Error{data} and Error{unsupported} name the file and the field.
  static Tokenizer load(const std::string& path);
  /// Parses a Hugging Face tokenizer.json (BPE with a byte-level alphabet, or WordLevel) held in
  /// memory; `name` is what errors call it.
  static Tokenizer from_json(std::string_view json, const std::string& name = "tokenizer.json");
  /// Parses GPT-2's two files. They carry no split rule: GPT-2's is meant.
  static Tokenizer from_gpt2(const Gpt2Files& files);
  /// Byte-level BPE in nanochat's id layout: 0..255 are the bytes, merge k (a pair of earlier ids)
  /// makes 256 + k, the specials follow. A merge that makes bytes an earlier token has already
  /// makes that token and takes no new id. `split` is a regular expression (text/split.h).
  static Tokenizer byte_level(std::span<const std::pair<int32_t, int32_t>> merges,
                              const std::string& split,
                              const std::vector<std::string>& specials);
  /// One token per word: ids are the positions in `words`, then the specials. Words are separated
  /// by white space; each of . , ! ? ; : is a word of its own, which decoding attaches to the word
  /// before it, as it does with words that begin with an apostrophe. A word list that has
  /// "<|unk|>" among its specials encodes unknown words as that; otherwise they are an error.
  static Tokenizer word_level(const std::vector<std::string>& words,
                              const std::vector<std::string>& specials);

  /// Appends the ids of `text` to `out`. Any bytes are accepted: invalid UTF-8 is encoded byte by
  /// byte and decodes back (word-level tokenizers need valid UTF-8). Time is linear in the text,
  /// but for a factor log(chunk) in chunks the merges do not cover.
  /// Error{data} when the vocabulary cannot express the text.
  void encode_append(std::string_view text,
                     SpecialTokens specials,
                     std::vector<int32_t>& out) const;
  std::vector<int32_t> encode(std::string_view text,
                              SpecialTokens specials = SpecialTokens::as_text) const;
  /// One vector of ids per document, encoded on all threads.
  std::vector<std::vector<int32_t>> encode_batch(
      std::span<const std::string_view> documents,
      SpecialTokens specials = SpecialTokens::as_text) const;

  /// The text of `ids`; special tokens appear by name. For byte-level BPE the exact inverse of
  /// `encode` (after NFC where the tokenizer has it). Error{data} when an id is out of range.
  std::string decode(std::span<const int32_t> ids) const;
  /// Appends what `id` adds to a text whose last token was `previous` (none at the start): for
  /// streaming. `decode` is this in a loop.
  void decode_next(std::optional<int32_t> previous, int32_t id, std::string& out) const;

  int64_t vocab_size() const;
  /// The bytes `id` stands for: for word-level tokens with the blank that separates them from the
  /// word before, for special tokens their name. Error{data} when out of range.
  std::string_view token_bytes(int32_t id) const;
  /// The id whose `token_bytes` are these (for word-level tokens also without the blank).
  std::optional<int32_t> find(std::string_view bytes) const;
  /// Bytes of text per token for bits per byte: 0 for special tokens.
  std::vector<int32_t> byte_lengths() const;

  /// By rising id.
  const std::vector<AddedToken>& added_tokens() const;
  /// The id of a special or added token by its exact name.
  std::optional<int32_t> special_id(std::string_view name) const;
  bool is_special(int32_t id) const;
  /// The token that starts a document: <|bos|>, else <|endoftext|>.
  std::optional<int32_t> bos_id() const;
  /// The token at which free-running text ends: <|endoftext|>, else <|bos|>.
  std::optional<int32_t> eos_id() const;

  bool is_word_level() const;
  /// The split rule, a regular expression.
  const std::string& split_rule() const;
  /// SHA-256 of `to_json()`: equal for tokenizers that behave alike, from whichever file.
  std::string content_hash() const;

  /// The tokenizer as a Hugging Face tokenizer.json.
  std::string to_json() const;
  /// The tokenizer as GPT-2's two files. Error{unsupported} when they cannot carry it: another
  /// split rule, a normaliser, added tokens other than <|endoftext|>, or word-level.
  Gpt2Files to_gpt2() const;

 private:
  struct Impl;
  friend class TokenizerBuilder;
  explicit Tokenizer(std::shared_ptr<const Impl> impl);

  std::shared_ptr<const Impl> impl_;
};

}  // namespace tightloop
