#include "tightloop/text/story_corpus.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "tightloop/core/error.h"
#include "tightloop/core/rng.h"
#include "tightloop/text/story_words.h"

namespace tightloop {
namespace {

namespace words = story_words;

std::vector<std::string> split(std::string_view text) {
  std::vector<std::string> out;
  for (size_t i = 0; i < text.size();) {
    size_t end = text.find(' ', i);
    if (end == std::string_view::npos) end = text.size();
    if (end > i) out.emplace_back(text.substr(i, end - i));
    i = end + 1;
  }
  return out;
}

std::vector<std::string> prefix(const char* list, int count, const char* what) {
  std::vector<std::string> all = split(list);
  if (count < 1 || count > static_cast<int>(all.size()))
    fail(ErrorKind::usage, "story corpus: {} {} asked for, expected 1..{}", count, what,
         all.size());
  all.resize(static_cast<size_t>(count));
  return all;
}

/// Integer weights, so that a probability is a ratio of integers on every machine. Square root and
/// division are correctly rounded by IEEE 754.
uint64_t weight(StorySettings::Zipf zipf, size_t place) {
  constexpr double kScale{1 << 20};
  const auto rank = static_cast<double>(place + 1);
  switch (zipf) {
    case StorySettings::Zipf::flat:
      return 1;
    case StorySettings::Zipf::square_root:
      return static_cast<uint64_t>(std::llround(kScale / std::sqrt(rank)));
    case StorySettings::Zipf::inverse:
      return static_cast<uint64_t>(std::llround(kScale / rank));
  }
  return 1;
}

struct Sentence {
  uint64_t weight;
  std::string_view text;
};

// {x} draws the fact x, [x] recalls it, [x.pronoun] recalls the pronoun that goes with it, <x> is a
// word of the table of x, (hour) is the hour after `delta` more. The first words of the sentences
// and of the closing all differ, and the closing has a quarter of the weight.
constexpr std::string_view kPlainOpening =
    "One {weather} {daypart} , {hero} and {friend} went to the {place} . [hero.She] had a {object} "
    ". The clock struck {hour} .";
constexpr Sentence kPlainSentences[] = {
    {6, "The [place] was <place> ."},
    {5, "Then [hero] {find} a {object} ."},
    {5, "Soon [friend] {touch} the [object] ."},
    {5, "After {delta} hours it struck (hour) ."},
    {6, "But [friend] was {mood} , so [friend.he] <mood> ."},
};
constexpr Sentence kPlainClosing{
    9, "At last [hero] gave the [object] to [friend] and they left the [place] ."};

constexpr std::string_view kRichOpening =
    "One {weather} {daypart} , {hero} the {job} and {friend} the {trade} went to the {place} . "
    "[hero.She] had a {colour} {object} . The clock struck {hour} .";
constexpr Sentence kRichSentences[] = {
    {6, "The [place] was <place> ."},
    {5, "Then [hero] {find} a {colour} {object} ."},
    {5, "Soon the [trade] {touch} the [colour] [object] ."},
    {5, "After {delta} hours it struck (hour) ."},
    {5, "But [friend] was {mood} , so [friend.he] <mood> ."},
    {4, "Nearby a {animal} watched the [job] ."},
};
constexpr Sentence kRichClosing{
    10,
    "At last [hero] gave the [colour] [object] to [friend] the [trade] and they left the "
    "[place] ."};

float nats_of(uint64_t weight, uint64_t total) {
  if (weight == total) return 0.0f;
  return static_cast<float>(-std::log(static_cast<double>(weight) / static_cast<double>(total)));
}

}  // namespace

StorySettings StorySettings::small() {
  StorySettings s;
  s.name = "small";
  s.names = 32;
  s.kinds_of_place = 8;
  s.places_per_kind = 5;
  s.adjectives_per_kind = 5;
  s.moods = 8;
  s.actions_per_mood = 3;
  s.objects = 40;
  s.find_verbs = 8;
  s.touch_verbs = 9;
  s.weather = 8;
  s.dayparts = 5;
  return s;
}

StorySettings StorySettings::large() {
  StorySettings s;
  s.name = "large";
  s.grammar = Grammar::rich;
  s.zipf = Zipf::inverse;
  s.names = 160;
  s.kinds_of_place = 20;
  s.places_per_kind = 8;
  s.adjectives_per_kind = 6;
  s.moods = 20;
  s.actions_per_mood = 4;
  s.objects = 200;
  s.find_verbs = 24;
  s.touch_verbs = 24;
  s.weather = 16;
  s.dayparts = 8;
  s.jobs = 60;
  s.colours = 12;
  s.animals = 40;
  return s;
}

StorySettings StorySettings::named(std::string_view name) {
  if (name == "small") return small();
  if (name == "large") return large();
  fail(ErrorKind::usage, "there is no built-in corpus \"{}\": expected small or large", name);
}

int WordChoices::pick(Rng& rng) const {
  if (words.size() == 1) return 0;
  uint64_t left = rng.below(total);
  for (int i = 0;; ++i) {
    if (i == without) continue;
    const uint64_t w = weights[static_cast<size_t>(i)];
    if (left < w) return i;
    left -= w;
  }
}

int32_t StoryCorpus::word(const std::string& piece) {
  for (size_t i = 0; i < pieces_.size(); ++i)
    if (pieces_[i] == piece) return static_cast<int32_t>(i);
  pieces_.push_back(piece);
  return static_cast<int32_t>(pieces_.size()) - 1;
}

int StoryCorpus::add_list(const std::vector<std::string>& list_words, StorySettings::Zipf zipf) {
  List list;
  for (size_t i = 0; i < list_words.size(); ++i) {
    const bool glued = list_words[i] == "." || list_words[i] == "," || list_words[i] == "One" ||
                       list_words[i] == kBosText;
    list.words.push_back(word(glued ? list_words[i] : " " + list_words[i]));
    list.weights.push_back(weight(zipf, i));
    list.total += list.weights.back();
  }
  lists_.push_back(std::move(list));
  return static_cast<int>(lists_.size()) - 1;
}

int StoryCorpus::single(const std::string& text) {
  return add_list({text}, StorySettings::Zipf::flat);
}

void StoryCorpus::parse(std::string_view text, Template& out) {
  const auto variable = [&](std::string_view name) {
    for (size_t i = 0; i < variables_.size(); ++i)
      if (variables_[i].name == name) return static_cast<int>(i);
    fail(ErrorKind::internal, "story template: no fact \"{}\"", name);
  };
  for (const std::string& item : split(text)) {
    const std::string_view inner =
        item.size() > 2 ? std::string_view(item).substr(1, item.size() - 2) : std::string_view();
    Slot slot;
    if (item[0] == '{') {
      slot.kind = SlotKind::draw;
      slot.variable = variable(inner);
      const Variable& v = variables_[static_cast<size_t>(slot.variable)];
      slot.list = v.list;
      slot.other = v.without;
    } else if (item[0] == '[') {
      slot.kind = SlotKind::recall;
      const size_t dot = inner.find('.');
      slot.variable = variable(inner.substr(0, dot));
      slot.list = variables_[static_cast<size_t>(slot.variable)].list;
      if (dot != std::string_view::npos) {
        const bool capital = inner.substr(dot + 1) == "She";
        std::vector<std::string> pronouns;
        for (int i = 0; i < settings_.names; ++i)
          pronouns.emplace_back(i % 2 == 0 ? (capital ? "She" : "she") : (capital ? "He" : "he"));
        slot.list = add_list(pronouns, StorySettings::Zipf::flat);
      }
    } else if (item[0] == '<') {
      slot.kind = SlotKind::table;
      slot.variable = variable(inner);
      const bool place = inner == "place";
      slot.kinds = place ? settings_.kinds_of_place : settings_.moods;
      slot.list = static_cast<int>(lists_.size());
      for (int i = 0; i < slot.kinds; ++i)
        add_list(place
                     ? prefix(words::kPlaceAdjectives[i], settings_.adjectives_per_kind,
                              "adjectives of a kind of place")
                     : prefix(words::kActions[i], settings_.actions_per_mood, "actions of a mood"),
                 StorySettings::Zipf::flat);
    } else if (item[0] == '(') {
      slot.kind = SlotKind::sum;
      slot.variable = variable(inner);
      slot.other = variable("delta");
      slot.list = variables_[static_cast<size_t>(slot.variable)].list;
    } else {
      slot.list = single(item);
    }
    out.push_back(slot);
  }
}

StoryCorpus::StoryCorpus(StorySettings settings, uint64_t seed)
    : settings_(std::move(settings)), seed_(seed) {
  using Zipf = StorySettings::Zipf;
  const StorySettings& s = settings_;
  if (s.kinds_of_place < 1 || s.kinds_of_place > static_cast<int>(std::size(words::kPlaces)))
    fail(ErrorKind::usage, "story corpus: {} kinds of place asked for, expected 1..{}",
         s.kinds_of_place, std::size(words::kPlaces));
  if (s.names < 2) fail(ErrorKind::usage, "story corpus: {} names, expected at least 2", s.names);
  if (s.max_sentences < 1)
    fail(ErrorKind::usage, "story corpus: max_sentences is {}, expected at least 1",
         s.max_sentences);
  if (s.max_delta < 2 || s.max_delta > s.hours)
    fail(ErrorKind::usage, "story corpus: max_delta is {}, expected 2..{} (the hours)", s.max_delta,
         s.hours);

  const auto fact = [&](const char* name, const std::vector<std::string>& list, Zipf zipf) {
    variables_.push_back({name, add_list(list, zipf), -1});
  };
  const auto another = [&](const char* name, const char* of) {
    for (size_t i = 0; i < variables_.size(); ++i)
      if (variables_[i].name == of) {
        variables_.push_back({name, variables_[i].list, static_cast<int>(i)});
        return;
      }
  };
  // Place p is of kind p % kinds: every kind is about equally frequent.
  std::vector<std::string> places;
  for (int i = 0; i < s.places_per_kind; ++i)
    for (int kind = 0; kind < s.kinds_of_place; ++kind)
      places.push_back(prefix(words::kPlaces[kind], s.places_per_kind,
                              "places of a kind")[static_cast<size_t>(i)]);
  const std::vector<std::string> hours = prefix(words::kHours, s.hours, "hours");
  fact("weather", prefix(words::kWeather, s.weather, "kinds of weather"), s.zipf);
  fact("daypart", prefix(words::kDayparts, s.dayparts, "parts of the day"), s.zipf);
  fact("hero", prefix(words::kNames, s.names, "names"), s.zipf);
  another("friend", "hero");
  fact("place", places, s.zipf);
  fact("object", prefix(words::kObjects, s.objects, "objects"), s.zipf);
  fact("hour", hours, Zipf::flat);
  fact("delta", {hours.begin() + 1, hours.begin() + s.max_delta}, Zipf::flat);
  fact("find", prefix(words::kFindVerbs, s.find_verbs, "verbs of finding"), s.zipf);
  fact("touch", prefix(words::kTouchVerbs, s.touch_verbs, "verbs of touching"), s.zipf);
  fact("mood", prefix(words::kMoods, s.moods, "moods"), s.zipf);
  const bool rich = s.grammar == StorySettings::Grammar::rich;
  if (rich) {
    fact("job", prefix(words::kJobs, s.jobs, "jobs"), s.zipf);
    another("trade", "job");
    fact("colour", prefix(words::kColours, s.colours, "colours"), s.zipf);
    fact("animal", prefix(words::kAnimals, s.animals, "animals"), s.zipf);
  }
  TL_CHECK(variables_.size() <= kMaxVariables);

  parse(rich ? kRichOpening : kPlainOpening, opening_);
  const auto add_first_word = [&](std::string_view text, uint64_t w, List& list) {
    list.words.push_back(word(" " + std::string(text.substr(0, text.find(' ')))));
    list.weights.push_back(w);
    list.total += w;
    return text.substr(text.find(' '));
  };
  for (const Sentence& sentence :
       rich ? std::span<const Sentence>(kRichSentences) : std::span(kPlainSentences)) {
    const std::string_view rest = add_first_word(sentence.text, sentence.weight, first_);
    parse(rest, sentences_.emplace_back());
  }
  const Sentence& closing = rich ? kRichClosing : kPlainClosing;
  middle_ = first_;
  add_first_word(closing.text, closing.weight, middle_);
  parse(add_first_word(closing.text, 1, last_), closing_);
  opening_.insert(opening_.begin(), Slot{.list = single(std::string(kBosText))});
}

int64_t StoryCorpus::max_tokens() const {
  size_t longest = 0;
  for (const Template& sentence : sentences_) longest = std::max(longest, sentence.size() + 1);
  return static_cast<int64_t>(opening_.size() + closing_.size() + 1 +
                              longest * static_cast<size_t>(settings_.max_sentences));
}

SyntheticDocument StoryCorpus::story(uint64_t stream) const {
  SyntheticDocument out;
  out.tokens.reserve(128);
  out.nll.reserve(128);
  out.skill.reserve(128);
  Rng rng(seed_, stream);
  walk([&](const WordChoices& choices, Skill skill) {
    const int picked = choices.pick(rng);
    out.tokens.push_back(choices.words[static_cast<size_t>(picked)]);
    out.nll.push_back(nats_of(choices.weights[static_cast<size_t>(picked)], choices.total));
    out.skill.push_back(static_cast<uint8_t>(skill));
    return picked;
  });
  return out;
}

StoryCorpus::Score StoryCorpus::score(std::span<const int32_t> tokens) const {
  Score out;
  size_t at = 0;
  out.complete = walk([&](const WordChoices& choices, Skill skill) {
    if (at == tokens.size()) return -1;
    const int count = static_cast<int>(choices.words.size());
    for (int i = 0; i < count; ++i) {
      if (choices.words[static_cast<size_t>(i)] != tokens[at] || !choices.allows(i)) continue;
      out.document.tokens.push_back(tokens[at]);
      out.document.nll.push_back(nats_of(choices.weights[static_cast<size_t>(i)], choices.total));
      out.document.skill.push_back(static_cast<uint8_t>(skill));
      ++at;
      return i;
    }
    const bool known = tokens[at] >= 0 && tokens[at] < vocab_size();
    std::string expected = pieces_[static_cast<size_t>(choices.words[0])];
    if (count > 1)
      expected += fmt::format("\" or {} others, \"{}\" among them", count - 1,
                              pieces_[static_cast<size_t>(choices.words[1])]);
    else
      expected += "\"";
    out.error = fmt::format("token {} is {}, expected \"{} ({})", at,
                            known ? "\"" + pieces_[static_cast<size_t>(tokens[at])] + "\""
                                  : fmt::format("id {}", tokens[at]),
                            expected, kSkillNames[static_cast<size_t>(skill)]);
    return -1;
  });
  if (out.complete && at < tokens.size())
    out.error = fmt::format("token {} follows the end of the story", at);
  return out;
}

std::string StoryCorpus::text(std::span<const int32_t> tokens) const {
  std::string out;
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] < 0 || tokens[i] >= vocab_size())
      fail(ErrorKind::data, "token {} is {}, expected 0..{}", i, tokens[i], vocab_size() - 1);
    if (tokens[i] != bos()) out += pieces_[static_cast<size_t>(tokens[i])];
  }
  return out;
}

void StoryCorpus::add_entropy(const Template& slots, double times, StoryEntropy& sum) const {
  const auto entropy_without = [](const List& list, size_t without) {
    double nats = 0;
    const double total =
        static_cast<double>(list.total) -
        (without < list.weights.size() ? static_cast<double>(list.weights[without]) : 0.0);
    for (size_t i = 0; i < list.weights.size(); ++i) {
      const double p = static_cast<double>(list.weights[i]) / total;
      if (i != without && p > 0) nats -= p * std::log(p);
    }
    return nats;
  };
  constexpr size_t kNone{~size_t{0}};
  for (const Slot& slot : slots) {
    const List& list = lists_[static_cast<size_t>(slot.list)];
    Skill skill = Skill::fixed;
    double nats = 0;
    switch (slot.kind) {
      case SlotKind::text:
        break;
      case SlotKind::draw:
        skill = Skill::draw;
        if (slot.other < 0) {
          nats = entropy_without(list, kNone);
        } else {  // the value left out was drawn from the same list, from all of it
          for (size_t i = 0; i < list.weights.size(); ++i)
            nats += static_cast<double>(list.weights[i]) / static_cast<double>(list.total) *
                    entropy_without(list, i);
        }
        break;
      case SlotKind::recall:
        skill = Skill::recall;
        break;
      case SlotKind::table:  // the lists of all kinds have one length and are flat
        skill = Skill::table;
        nats = entropy_without(list, kNone);
        break;
      case SlotKind::sum:
        skill = Skill::sum;
        break;
    }
    sum.nats[static_cast<size_t>(skill)] += times * nats;
    sum.tokens[static_cast<size_t>(skill)] += times;
  }
}

std::vector<std::string> StoryCorpus::words() const {
  std::vector<std::string> out;
  for (int32_t id = 0; id < bos(); ++id) {
    const std::string& piece = pieces_[static_cast<size_t>(id)];
    out.push_back(piece[0] == ' ' ? piece.substr(1) : piece);
  }
  return out;
}

Tokenizer StoryCorpus::tokenizer() const {
  return Tokenizer::word_level(words(), {std::string(kBosText)});
}

StoryEntropy StoryCorpus::entropy() const {
  StoryEntropy sum;
  add_entropy(opening_, 1, sum);
  constexpr auto kBranch = static_cast<size_t>(Skill::branch);
  double alive = 1;  // probability that the story is still going on
  for (int i = 0; i < settings_.max_sentences; ++i) {
    const List& list = i == 0 ? first_ : middle_;
    double going = 0;
    for (size_t j = 0; j < list.words.size(); ++j) {
      const double p = static_cast<double>(list.weights[j]) / static_cast<double>(list.total);
      sum.nats[kBranch] -= alive * p * std::log(p);
      if (j < sentences_.size()) {
        add_entropy(sentences_[j], alive * p, sum);
        going += p;
      }
    }
    sum.tokens[kBranch] += alive;
    alive *= going;
  }
  sum.tokens[kBranch] += alive;  // the closing after the last sentence has no alternative
  add_entropy(closing_, 1, sum);
  for (int i = 0; i < kSkillCount; ++i) {
    sum.nats_per_story += sum.nats[static_cast<size_t>(i)];
    sum.tokens_per_story += sum.tokens[static_cast<size_t>(i)];
  }
  return sum;
}

}  // namespace tightloop
