#pragma once

// For tests only.

#include <cmath>
#include <string>
#include <utility>
#include <vector>

#include "tightloop/text/story_corpus.h"

namespace tightloop {

inline StorySettings tiny_story_settings() {
  StorySettings s;
  s.name = "tiny";
  s.names = 3;
  s.kinds_of_place = 2;
  s.places_per_kind = 1;
  s.adjectives_per_kind = 2;
  s.moods = 2;
  s.actions_per_mood = 2;
  s.objects = 2;
  s.find_verbs = 2;
  s.touch_verbs = 1;
  s.weather = 2;
  s.dayparts = 1;
  s.hours = 3;
  s.max_delta = 3;
  s.max_sentences = 2;
  return s;
}

// Every story of the tiny setting with its probability, written down by hand: no code shared with
// the corpus. Facts are drawn first, then the text is made, so this knows nothing of "late" draws.
struct StoryEnumeration {
  std::vector<std::pair<std::string, double>> stories;  // words and marks separated by blanks

  static double zipf(int r, int n) {
    double total = 0;
    for (int i = 1; i <= n; ++i) total += 1 / std::sqrt(i);
    return 1 / std::sqrt(r + 1) / total;
  }
  struct State {
    int hero, friend_, place, object, hour;
  };
  const std::vector<std::string> names{"Anna", "Tom", "Mary"}, places{"harbour", "forest"},
      objects{"lantern", "kite"}, hours{"one", "two", "three"}, weather{"sunny", "rainy"},
      find{"found", "bought"}, moods{"tired", "happy"};
  const std::vector<std::vector<std::string>> adjectives{{"salty", "windy"}, {"green", "leafy"}},
      actions{{"rested", "slept"}, {"sang", "danced"}};

  void finish(const std::string& text, double p) { stories.emplace_back(text, p); }
  void closing(const std::string& text, double p, const State& s) {
    finish(text + " At last " + names[s.hero] + " gave the " + objects[s.object] + " to " +
               names[s.friend_] + " and they left the " + places[s.place] + " .",
           p);
  }
  void sentences(const std::string& text, double p, const State& s, int done) {
    if (done == 2) return closing(text, p, s);
    if (done > 0) closing(text, p * 0.25, s);
    const double all = done == 0 ? 27.0 : 36.0;
    for (int a = 0; a < 2; ++a)
      sentences(text + " The " + places[s.place] + " was " + adjectives[s.place][a] + " .",
                p * 6 / all / 2, s, done + 1);
    for (int v = 0; v < 2; ++v)
      for (int o = 0; o < 2; ++o) {
        State t = s;
        t.object = o;
        sentences(text + " Then " + names[s.hero] + " " + find[v] + " a " + objects[o] + " .",
                  p * 5 / all * zipf(v, 2) * zipf(o, 2), t, done + 1);
      }
    sentences(text + " Soon " + names[s.friend_] + " admired the " + objects[s.object] + " .",
              p * 5 / all, s, done + 1);
    for (int d = 2; d <= 3; ++d) {
      State t = s;
      t.hour = (s.hour + d) % 3;
      sentences(text + " After " + hours[d - 1] + " hours it struck " + hours[t.hour] + " .",
                p * 5 / all / 2, t, done + 1);
    }
    for (int m = 0; m < 2; ++m)
      for (int a = 0; a < 2; ++a)
        sentences(text + " But " + names[s.friend_] + " was " + moods[m] + " , so " +
                      (s.friend_ == 1 ? "he " : "she ") + actions[m][a] + " .",
                  p * 6 / all * zipf(m, 2) / 2, s, done + 1);
  }
  StoryEnumeration() {
    for (int w = 0; w < 2; ++w)
      for (int h = 0; h < 3; ++h)
        for (int f = 0; f < 3; ++f)
          for (int pl = 0; pl < 2; ++pl)
            for (int o = 0; o < 2; ++o)
              for (int c = 0; c < 3; ++c) {
                if (f == h) continue;
                const double p = zipf(w, 2) * zipf(h, 3) * zipf(f, 3) / (1 - zipf(h, 3)) *
                                 zipf(pl, 2) * zipf(o, 2) / 3;
                sentences("<|bos|> One " + weather[w] + " morning , " + names[h] + " and " +
                              names[f] + " went to the " + places[pl] + " . " +
                              (h == 1 ? "He" : "She") + " had a " + objects[o] +
                              " . The clock struck " + hours[c] + " .",
                          p, {h, f, pl, o, c}, 0);
              }
  }
};

}  // namespace tightloop
