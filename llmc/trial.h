/*
Trials on a model before its run begins: how long a step takes, whether GELU is faster when fused
into the matrix product, whether a device may replay a micro-batch. train_gpt.c includes this file
after train_step.
*/
#ifndef CM_TRIAL_H
#define CM_TRIAL_H

/* Measures the seconds of one micro-batch and of one update, the best of up to three rounds; trains
   the model. Returns -1 with a message if the data or the device fails. */
static int time_step(Run *run, Model *m, double *micro_batch, double *update, char *err) {
    const int rounds = 3;
    const double enough = 20; /* seconds: after a round this long there is no other */
    double scale = 1.0 / (double)m->c->total_batch_tokens;
    *micro_batch = *update = INFINITY;
    m->fresh = m->c->total_batch_tokens == m->s.N; /* as most micro-batches of a step are */
    for (int i = 0; i < rounds; i++) {
        device_wait();
        double start = now_seconds();
        if (data_next(&run->train, m->s.B, run->x, run->y, err)) return -1;
        clear_gradients(m);
        accumulate_gradient(m, run->x, run->y, scale);
        take_loss(m);
        double middle = now_seconds();
        optimizer_step(m, 0, 1);
        device_wait();
        double end = now_seconds();
        *micro_batch = fmin(*micro_batch, middle - start);
        *update = fmin(*update, end - middle);
        if (end - start > enough) break;
    }
    return device_check(err);
}

/* --gelu auto: measures both ways on layer 0, in tensors that the first micro-batch overwrites. A
   resumed run follows the earlier choice. */
static void choose_gelu(Run *run, Model *m) {
    Acts *a = &m->a;
    device_choose_gelu(&run->config, &run->choices, a->act, a->fc, a->norm2, weight(m, T_WFC, 0),
                       weight(m, T_BFC, 0), a->dfc, a->dact, grad(m, T_BFC, 0), a->dx,
                       weight(m, T_WPROJ, 0));
    run->asked.gelu = run->config.gelu;
}

/* The gradient of two micro-batches of equal data, of which one is fresh and one is not, copied to
   `host` unless NULL. Returns the sum of their losses. */
static double probe_gradient(Run *run, Model *m, floatM *host) {
    double scale = 1.0 / (double)m->c->total_batch_tokens;
    clear_gradients(m);
    m->fresh = 1;
    accumulate_gradient(m, run->x, run->y, scale);
    m->fresh = 0;
    accumulate_gradient(m, run->x, run->y, scale);
    if (host) device_download(host, m->p.grad, m->p.r.size[SLOT_GRAD] * sizeof(floatM));
    return take_loss(m);
}

/* Whether a replayed micro-batch has the gradient and the loss of a plain one, to the bit. If so,
   the device keeps replaying. Returns -1 without memory to compare. */
static int replay_agrees(Run *run, Model *m) {
    size_t bytes = m->p.r.size[SLOT_GRAD] * sizeof(floatM);
    floatM *plain = (floatM *)malloc(bytes + 1), *replayed = (floatM *)malloc(bytes + 1);
    int same = -1;
    if (plain && replayed) {
        double loss = probe_gradient(run, m, plain), replayed_loss = 0;
        device_replay(1);
        /* Three times: the work is done plainly, recorded, replayed. */
        for (int i = 0; i < 3; i++) replayed_loss = probe_gradient(run, m, replayed);
        same = !memcmp(&replayed_loss, &loss, sizeof loss) && !memcmp(plain, replayed, bytes);
        device_replay(same);
    }
    free(plain);
    free(replayed);
    return same;
}

/* --cuda-graph: decides whether micro-batches are recorded and replayed. auto replays if a
   micro-batch takes less than 10 ms, since a longer one hides its launches behind its work, and if
   the bits stay equal. `on` is refused if the bits differ. Attention that adds in any order has no
   bits to compare, so auto does not replay it. Data and parameters stay as they were. */
static int choose_replay(Run *run, Model *m, char *err) {
    const double short_seconds = 0.010;
    const Config *c = m->c;
    int on = c->cuda_graph == AUTO_ON, any_order = c->attention == ATTENTION_CUDNN_FAST;
    DataState place = data_state(&run->train);
    if (!device_can_replay(!on) || c->cuda_graph == AUTO_OFF || (any_order && !on)) return 0;
    if (any_order) {
        device_replay(1);
        return 0;
    }
    if (data_next(&run->train, m->s.B, run->x, run->y, err) || data_seek(&run->train, place, err))
        return -1;
    probe_gradient(run, m,
                   NULL); /* loads, measures and allocates, so that the next one is timed alone */
    double start = now_seconds();
    probe_gradient(run, m, NULL);
    if (!on && now_seconds() - start > 2 * short_seconds) return 0;
    int agrees = replay_agrees(run, m);
    if (agrees < 0 && on)
        return fail(err, "--cuda-graph on: out of memory to compare two gradients");
    if (!agrees && on)
        return fail(err, "--cuda-graph on: a replayed micro-batch has another gradient than a "
                         "plain one; use --cuda-graph off");
    if (agrees == 0)
        fprintf(stderr, "note: a replayed micro-batch has another gradient than a plain one: no "
                        "CUDA graph\n");
    return 0;
}

#endif
