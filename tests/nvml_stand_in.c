/* A driver's library with one GPU, for the parts of wan2gp that speak to it by ctypes. What it tells is compiled in,
   but for the processes: one a line, "pid bytes", in the file that -DPROCESSES names.
   -DLIST=name of the function, -DENTRY=bytes of an entry, -DMIG=1: the GPU is cut into slices. */
#include <stdio.h>
#include <string.h>

#ifndef LIST
#define LIST nvmlDeviceGetComputeRunningProcesses_v3
#endif
#ifndef ENTRY
#define ENTRY 24
#endif
#ifndef MIG
#define MIG 0
#endif

static int whole, slice;

int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
/* The second one is lost. */
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) { *device = &whole; return index ? 15 : 0; }
int nvmlDeviceGetName(void *device, char *name, unsigned length) { strncpy(name, "Stand-In 9000", length); return 0; }
int nvmlDeviceGetUtilizationRates(void *device, unsigned *rates) { rates[0] = 37; rates[1] = 1; return 0; }

int nvmlDeviceGetMemoryInfo_v2(void *device, unsigned long long *memory) {
    if (*(unsigned *)memory != (40 | 2 << 24)) return 25;
    memory[1] = 81559ULL << 20, memory[2] = 512ULL << 20, memory[3] = 80023ULL << 20, memory[4] = 1024ULL << 20;
    return 0;
}

int nvmlDeviceGetMigMode(void *device, unsigned *current, unsigned *pending) { *current = *pending = MIG; return 0; }
int nvmlDeviceGetMaxMigDeviceCount(void *device, unsigned *count) { *count = 7; return 0; }
int nvmlDeviceGetMigDeviceHandleByIndex(void *device, unsigned index, void **found) {
    *found = &slice;
    return index == 3 ? 0 : 6;
}

int LIST(void *device, unsigned *count, char *entries) {
    unsigned pid, found = 0, room = *count;
    unsigned long long bytes;
    FILE *file;
    if (MIG && device == &whole) return 4;
    file = fopen(PROCESSES, "r");
    while (file && fscanf(file, "%u %llu", &pid, &bytes) == 2) {
        if (found < room) {
            memset(entries + found * ENTRY, 0, ENTRY);
            memcpy(entries + found * ENTRY, &pid, 4);
            memcpy(entries + found * ENTRY + 8, &bytes, 8);
        }
        found++;
    }
    if (file) fclose(file);
    *count = found;
    return found > room ? 7 : 0;
}
