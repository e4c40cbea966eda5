#include "tightloop/ops/polar_express/polar_express.h"
