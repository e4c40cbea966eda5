#pragma once

#include <string_view>

namespace tightloop {

/// Which revision of nanochat's training recipe: model details, optimizer groups, schedules.
enum class Recipe {
  nanochat_2026_07,  // commit 92d63d4, the default
  nanochat_2026_02,  // commit c7ba252
};

/// "2026-07", "2026-02".
std::string_view name_of(Recipe recipe);
/// Error{usage} for any other name.
Recipe parse_recipe(std::string_view name);

}  // namespace tightloop
