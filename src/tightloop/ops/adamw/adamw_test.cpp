#include "tightloop/ops/adamw/adamw.h"
