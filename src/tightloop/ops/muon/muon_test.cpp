#include "tightloop/ops/muon/muon.h"
