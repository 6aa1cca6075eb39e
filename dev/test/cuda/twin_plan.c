/*
The update plan on the CPU beside the CUDA backend, see twin.h.
*/
#include "../../../llmc/cpu/backend.h"
#include "../../../llmc/optim/plan.h"
#include "../config_of.h"
#include "twin.h"

void cpu_plan_step(const char *flags, float *p, float *g, float *m, float *v, int step) {
    Config c = config_of(flags, "");
    Registry r = registry_build(&c);
    Plan plan = plan_build(&c, &r);
    float *scratch = malloc((plan.arena_size + 1) * sizeof *scratch);
    if (!scratch) die("twin: out of memory");
    Arena arena = {scratch, plan.arena_size, 0};
    PlanState s = {.param = p,
                   .grad = g,
                   .moment = m,
                   .state = v,
                   .arena = &arena,
                   .lr_scale = {1, 1},
                   .momentum = c.optim.momentum,
                   .gscale = 1,
                   .step = step};
    plan_step(&plan, &r, &c, &s);
    free(scratch);
}
