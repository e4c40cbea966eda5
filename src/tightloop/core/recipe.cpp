#include "tightloop/core/recipe.h"

#include "tightloop/core/error.h"

namespace tightloop {

std::string_view name_of(Recipe recipe) {
  return recipe == Recipe::nanochat_2026_07 ? "2026-07" : "2026-02";
}

Recipe parse_recipe(std::string_view name) {
  for (Recipe recipe : {Recipe::nanochat_2026_07, Recipe::nanochat_2026_02}) {
    if (name == name_of(recipe)) return recipe;
  }
  fail(ErrorKind::usage, "unknown recipe '{}', expected 2026-07 or 2026-02", name);
}

}  // namespace tightloop
