/* What a network's forward and backward pass share: views of its tensors, and the jobs of a layer. */
#ifndef MANUAL_RNN_NETWORK_INTERNAL_H
#define MANUAL_RNN_NETWORK_INTERNAL_H
#include "network.h"
#include "schedule.h"

/* Rows of a step, a row and a column; of packed rows each may be a step's first. */
View rows_view(const Network *net, const Tensor *x, bool batch_first);
View columns_from(View x, long column);
View state_view(const Tensor *x, long index);
View weight_view(const Tensor *w);
char *scratch_memory(const Network *net); /* for the states of a layer, to be freed */
View scratch_view(const Network *net, char *memory);

/* What forward and backward jobs of a layer and direction share: all but the results. */
Job shared_job(const Network *net, View below, long layer, long d);
long layer_inputs(const Network *net, long layer);
bool is_empty(const Network *net);
bool run_network_jobs(const Network *net, Job *jobs, long layers);

/* The member of an ensemble, as a network of its own, with `tensors` for the slices that its arrays hold. */
Network member_of(const Network *net, long g, Tensor *tensors);
bool for_each_member(const Network *net, bool (*run)(const Network *net));

#endif
