/* Memory in large pages. */
#ifndef MANUAL_RNN_MEMORY_H
#define MANUAL_RNN_MEMORY_H

/* Aligned for vectors; NULL where there is none. To be freed. */
void *allocate(long bytes);

/* What follows for new memory that nothing has touched yet. */
void use_large_pages(void *memory, long bytes);

#endif
