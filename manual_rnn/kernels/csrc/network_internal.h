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

/* Jobs of `count` layers, and what lies between one and the next where it isn't kept: two memories, in turn. */
typedef struct { long count; Job *jobs; char *memory[2]; } Layers;
bool begin_layers(Layers *all, const Network *net, long count, bool between); /* false where there is no memory */
View between_layers(const Layers *all, const Network *net, long index);
bool run_layers(Layers *all, const Network *net);
void end_layers(Layers *all); /* also where begin_layers returned false */

/* What forward and backward jobs of a layer and direction share: all but the results. */
Job shared_job(const Network *net, View below, long layer, long d);
long layer_inputs(const Network *net, long layer);
bool is_empty(const Network *net);

/* Rows of states, (L * D, B, H), to memory that may be absent; zeros where none are given. */
void copy_state_rows(const Network *net, const Tensor *to, const Tensor *from);

/* Runs a network or, of an ensemble, each member as a network of its own: side by side, each on one thread. Members
 * that share their weights may be the samples of one network, so many at a time. */
bool for_each_member(const Network *net, long samples, bool (*run)(const Network *net));

#endif
