#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tightloop/core/rng.h"
#include "tightloop/text/synthetic.h"
#include "tightloop/text/tokenizer.h"

namespace tightloop {

/// The settings of the story corpus: how long its word lists are, how its random choices are
/// weighted, and which templates it uses. `small()` and `large()` are fixed for good:
/// docs/corpus.md has their numbers.
struct StorySettings {
  enum class Zipf { flat, square_root, inverse };  // weight of the r-th word: 1, r^-1/2, 1/r
  /// The sentences of a story. `rich` adds jobs, colours and animals.
  enum class Grammar { plain, rich };

  std::string name;
  Grammar grammar = Grammar::plain;
  Zipf zipf = Zipf::square_root;
  int names = 0;
  int kinds_of_place = 0;
  int places_per_kind = 0;
  int adjectives_per_kind = 0;
  int moods = 0;
  int actions_per_mood = 0;
  int objects = 0;
  int find_verbs = 0;
  int touch_verbs = 0;
  int weather = 0;
  int dayparts = 0;
  int hours = 12;     // on the clock: sums are modulo this
  int max_delta = 6;  // hours that pass at once: 2..max_delta
  int jobs = 0;       // rich only, like the next two
  int colours = 0;
  int animals = 0;
  int max_sentences = 10;

  /// For a model that learns in a minute or two on a CPU: about 250 words, flat frequencies.
  static StorySettings small();
  /// About 1,000 words, Zipf frequencies, more facts a story.
  static StorySettings large();
  /// "small" or "large"; Error{usage} otherwise.
  static StorySettings named(std::string_view name);
};

/// Expected values over all stories, by one recursion over the grammar.
struct StoryEntropy {
  double nats_per_story = 0;
  double tokens_per_story = 0;  // BOS included
  double rate() const { return nats_per_story / tokens_per_story; }
  std::array<double, kSkillCount> nats{};    // per story, by skill
  std::array<double, kSkillCount> tokens{};  // per story, by skill
};

/// What a story says so far, as a list of word ids with their integer weights: the distribution of
/// the next word is weight / total, exactly. `without` is the place of a word left out, or −1.
struct WordChoices {
  std::span<const int32_t> words;
  std::span<const uint64_t> weights;
  uint64_t total = 0;
  int without = -1;

  /// A random one of them.
  int pick(Rng& rng) const;
  bool allows(int i) const { return i != without && weights[static_cast<size_t>(i)] > 0; }
};

/// Short stories in plain English from a grammar that makes each random choice at the word that
/// shows it. So −log p of every word is known exactly: the lowest loss any model can reach.
/// Word ids are 0..vocab_size() − 1; the last is BOS, which starts each story.
///
/// A story is an opening, 1..max_sentences sentences, a closing; after each sentence the story ends
/// with probability 1/4. Story i is made from Philox stream i of `seed`: any story can be made
/// alone, anywhere, with the same bits. Validation stories use streams from kValidationStream on.
class StoryCorpus {
 public:
  static constexpr uint64_t kValidationStream = uint64_t{1} << 40;
  static constexpr std::string_view kBosText = "<|bos|>";

  /// Error{usage} when a list is asked for that is longer than the words we have, or empty.
  explicit StoryCorpus(StorySettings settings, uint64_t seed = 0);

  const StorySettings& settings() const { return settings_; }
  uint64_t seed() const { return seed_; }
  int64_t vocab_size() const { return static_cast<int64_t>(pieces_.size()); }
  int32_t bos() const { return static_cast<int32_t>(pieces_.size()) - 1; }
  /// The words without blanks, in the order of their ids, without BOS.
  std::vector<std::string> words() const;
  /// The word-level tokenizer with these ids.
  Tokenizer tokenizer() const;
  /// The text of each word id, with its leading blank where it has one: " harbour", ",", "One". The
  /// text of a story is the concatenation of its pieces; BOS is kBosText.
  const std::vector<std::string>& pieces() const { return pieces_; }
  /// The longest story there can be, in tokens with BOS.
  int64_t max_tokens() const;

  SyntheticDocument story(uint64_t stream) const;
  /// The text of a story, without BOS. Error{data} for an id outside the vocabulary.
  std::string text(std::span<const int32_t> tokens) const;
  StoryEntropy entropy() const;

  /// What a token stream is worth under the grammar.
  struct Score {
    SyntheticDocument document;        // the tokens up to the first error, with −log p and skill
    bool complete = false;             // the story came to its end
    std::optional<std::string> error;  // the first token that cannot stand where it stands
  };
  /// Reads one story, or the beginning of one, that starts with BOS, and works out −log p of each
  /// token. Independent of how the tokens were made: use it on samples of a model.
  Score score(std::span<const int32_t> tokens) const;

  /// Walks the grammar once. At each word calls `choose(choices, skill)`, which returns the place
  /// of the word in `choices`, or −1 to stop. Returns true when the story came to its end.
  template <typename Choose>
  bool walk(Choose&& choose) const;

 private:
  enum class SlotKind : uint8_t { text, draw, recall, table, sum };
  struct List {
    std::vector<int32_t> words;
    std::vector<uint64_t> weights;
    uint64_t total = 0;
  };
  struct Slot {
    SlotKind kind = SlotKind::text;
    int list = -1;      // text, draw, sum: the list; recall: words by the value of the variable;
                        // table: the first of the lists, one a kind
    int variable = -1;  // draw, sum: set; recall, table: read
    int other = -1;     // draw: the variable whose value is left out; sum: the variable added
    int kinds = 0;      // table: kind = value % kinds
  };
  using Template = std::vector<Slot>;
  static constexpr int kMaxVariables = 16;
  using Facts = std::array<int, kMaxVariables>;

  int32_t word(const std::string& piece);
  int add_list(const std::vector<std::string>& words, StorySettings::Zipf zipf);
  int single(const std::string& piece);
  void parse(std::string_view text, Template& out);
  template <typename Choose>
  bool fill(const Template& slots, Facts& facts, Choose& choose) const;
  void add_entropy(const Template& slots, double times, StoryEntropy& sum) const;

  StorySettings settings_;
  uint64_t seed_;
  std::vector<std::string> pieces_;
  std::vector<List> lists_;
  struct Variable {
    std::string name;
    int list = -1;
    int without = -1;  // drawn from the same list, never equal to this variable
  };
  std::vector<Variable> variables_;
  Template opening_;
  std::vector<Template> sentences_;  // without their first word
  Template closing_;                 // without its first word
  // First words of the sentences and, last, of the closing: the first sentence cannot be the
  // closing, the one after the last cannot be anything else.
  List first_, middle_, last_;
};

template <typename Choose>
bool StoryCorpus::fill(const Template& slots, Facts& facts, Choose& choose) const {
  for (const Slot& slot : slots) {
    const List* list = &lists_[static_cast<size_t>(slot.list)];
    WordChoices choices{list->words, list->weights, list->total, -1};
    Skill skill = Skill::fixed;
    int given = -1;
    switch (slot.kind) {
      case SlotKind::text:
        break;
      case SlotKind::draw:
        skill = Skill::draw;
        if (slot.other >= 0) {
          choices.without = facts[static_cast<size_t>(slot.other)];
          choices.total -= list->weights[static_cast<size_t>(choices.without)];
        }
        break;
      case SlotKind::recall:
        skill = Skill::recall;
        given = facts[static_cast<size_t>(slot.variable)];
        break;
      case SlotKind::table: {
        skill = Skill::table;
        const int kind = facts[static_cast<size_t>(slot.variable)] % slot.kinds;
        list = &lists_[static_cast<size_t>(slot.list) + static_cast<size_t>(kind)];
        choices = {list->words, list->weights, list->total, -1};
        break;
      }
      case SlotKind::sum:
        // Hour names start at one, so place i is i + 1 o'clock; deltas start at two.
        skill = Skill::sum;
        given = (facts[static_cast<size_t>(slot.variable)] +
                 facts[static_cast<size_t>(slot.other)] + 2) %
                settings_.hours;
        break;
    }
    if (given >= 0) {
      static constexpr uint64_t kOne = 1;
      choices = {std::span(list->words).subspan(static_cast<size_t>(given), 1), std::span(&kOne, 1),
                 1, -1};
      if (choose(choices, skill) < 0) return false;
    } else {
      given = choose(choices, skill);
      if (given < 0) return false;
    }
    if (slot.kind == SlotKind::draw || slot.kind == SlotKind::sum)
      facts[static_cast<size_t>(slot.variable)] = given;
  }
  return true;
}

template <typename Choose>
bool StoryCorpus::walk(Choose&& choose) const {
  Facts facts{};
  if (!fill(opening_, facts, choose)) return false;
  for (int i = 0;; ++i) {
    const List& list = i == 0 ? first_ : i < settings_.max_sentences ? middle_ : last_;
    const int next = choose(WordChoices{list.words, list.weights, list.total, -1}, Skill::branch);
    if (next < 0) return false;
    if (list.words[static_cast<size_t>(next)] == last_.words[0]) break;
    if (!fill(sentences_[static_cast<size_t>(next)], facts, choose)) return false;
  }
  return fill(closing_, facts, choose);
}

}  // namespace tightloop
