/* memory.h: memory that a pass reuses. */
#ifndef RF_MEMORY_H
#define RF_MEMORY_H

#include <stddef.h>

/* Memory, 64-byte aligned; NULL if there is not enough. And its requested bytes. */
void *rf_memory_acquire(size_t bytes, int zeroed);
void rf_memory_release(void *memory);
size_t rf_memory_size(const void *memory);

/* The begin and the end of a pass. */
void rf_memory_enter(void);
void rf_memory_exit(void);

/* Bytes that are cached: a part of the process's memory, available to a pass. Return all of them to
   the system; returns their number. And set the total memory, of which a sixteenth may stay cached.
 */
size_t rf_memory_cached(void);
size_t rf_memory_trim(void);
void rf_memory_set_total(size_t bytes);

#endif
