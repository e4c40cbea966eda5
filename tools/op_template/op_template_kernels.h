#pragma once

#include "tightloop/ops/op_template/op_template.h"

namespace tightloop {

void op_template_fwd_ref(const OpTemplateFwd& args);
void op_template_bwd_ref(const OpTemplateBwd& args);
void op_template_fwd_cpu(const OpTemplateFwd& args);
void op_template_bwd_cpu(const OpTemplateBwd& args);
void op_template_fwd_cuda(const Exec& exec, const OpTemplateFwd& args);
void op_template_bwd_cuda(const Exec& exec, const OpTemplateBwd& args);

}  // namespace tightloop
