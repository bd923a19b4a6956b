/* A scripted libnvidia-ml.so.1 for tests: what it answers stands in the file that SCRIPTED_NVML
 * names, read anew at each call, so that a GPU changes while the service runs. Without that
 * variable there is no driver. See nvml_library.py for the lines of the file; it builds this with
 *   gcc -shared -fPIC -Wl,-soname,libnvidia-ml.so.1
 *
 * Device handles are addresses in one table, as in the real library; instance n of a divided GPU g
 * has its place after the GPUs. The layouts of the structures are those of nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6,
       TOO_SMALL = 7, DRIVER_NOT_LOADED = 9, TIMED_OUT = 10 };
enum { GPUS = 16, SLICES = 8, PROCESSES = 64, WORD = 64, LINE = 512 };

typedef void *Device;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned int version; unsigned long long total, reserved, free, used; } MemoryV2;
typedef struct { unsigned int gpu, memory; } Utilization;
typedef struct {
    char busIdLegacy[16];
    unsigned int domain, bus, device, pciDeviceId, pciSubSystemId;
    char busId[32];
} Pci;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } Process;
typedef struct { Device device; unsigned long long type, data; unsigned int gi, ci; } Event;

static char table[GPUS + GPUS * SLICES]; /* nothing but addresses */
static int opened;
static long delivered; /* the number of the last event that was given out */
static char event_set;

static FILE *script(void) {
    const char *path = getenv("SCRIPTED_NVML");
    return path ? fopen(path, "r") : NULL;
}

/* Copies the value of `key=` in a line; 0 where there is none. */
static int text_of(const char *line, const char *key, char *value, size_t size) {
    char wanted[WORD];
    snprintf(wanted, sizeof wanted, " %s=", key);
    const char *at = strstr(line, wanted);
    if (!at) return 0;
    at += strlen(wanted);
    size_t length = strcspn(at, " \n");
    if (length >= size) length = size - 1;
    memcpy(value, at, length);
    value[length] = 0;
    return 1;
}

/* The first line that begins with `head` and a blank or the end; 0 where there is none. */
static int line_of(const char *head, char *line) {
    FILE *file = script();
    int found = 0;
    if (!file) return 0;
    size_t length = strlen(head);
    while (!found && fgets(line, LINE, file))
        found = !strncmp(line, head, length) && (line[length] == ' ' || line[length] == '\n');
    fclose(file);
    return found;
}

static int number_of(const char *line, const char *key, long long *value) {
    char word[WORD];
    if (!text_of(line, key, word, sizeof word)) return 0;
    *value = strtoll(word, NULL, 0);
    return 1;
}

/* What the file says of a function: `hang NAME` waits until the line is gone, `error NAME code=N`
 * gives that code. */
static int told(const char *function) {
    char head[LINE], line[LINE];
    long long code = SUCCESS;
    snprintf(head, sizeof head, "hang %s", function);
    while (line_of(head, line)) nanosleep(&(struct timespec){0, 1000000}, NULL);
    snprintf(head, sizeof head, "error %s", function);
    if (line_of(head, line)) number_of(line, "code", &code);
    return (int)code;
}

static int index_of(Device device) {
    char *at = device;
    return at >= table && at < table + sizeof table ? (int)(at - table) : -1;
}

/* The line of a device: `gpu 0 …` or `mig 0 1 …`, and whether it answers. */
static int open_line(Device device, char *line, const char *function) {
    int place = index_of(device), code = told(function);
    char head[WORD];
    long long lost = 0;
    if (!opened) return UNINITIALIZED;
    if (code) return code;
    if (place < 0) return INVALID;
    int gpu = place < GPUS ? place : (place - GPUS) / SLICES;
    snprintf(head, sizeof head, "gpu %d", gpu);
    if (!line_of(head, line)) return INVALID;
    if (number_of(line, "lost", &lost) && lost) return (int)lost;
    if (place < GPUS) return SUCCESS;
    snprintf(head, sizeof head, "mig %d %d", gpu, (place - GPUS) % SLICES);
    return line_of(head, line) ? SUCCESS : NOT_FOUND;
}

#define LINE_OF(device) \
    char line[LINE]; \
    int bad = open_line(device, line, __func__); \
    if (bad) return bad;
/* A figure that the line does not have is one that the GPU does not support. */
#define FIGURE(name) \
    long long name; \
    if (!number_of(line, #name, &name)) return NOT_SUPPORTED;

int nvmlInitWithFlags(unsigned int flags) {
    char line[LINE];
    int code = told(__func__);
    (void)flags;
    if (code) return code;
    if (!line_of("driver", line)) return DRIVER_NOT_LOADED;
    opened++;
    return SUCCESS;
}

int nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

int nvmlShutdown(void) {
    if (!opened) return UNINITIALIZED;
    opened--;
    return SUCCESS;
}

const char *nvmlErrorString(int code) {
    static char text[WORD];
    snprintf(text, sizeof text, "scripted error %d", code);
    return text;
}

int nvmlSystemGetDriverVersion(char *text, unsigned int size) {
    char line[LINE];
    if (!opened) return UNINITIALIZED;
    if (!line_of("driver", line)) return DRIVER_NOT_LOADED;
    return text_of(line, "version", text, size) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    char head[WORD], line[LINE];
    if (!opened) return UNINITIALIZED;
    if (!line_of("driver", line)) return DRIVER_NOT_LOADED;
    *count = 0;
    for (int gpu = 0; gpu < GPUS; gpu++) {
        long long gone = 0;
        snprintf(head, sizeof head, "gpu %d", gpu);
        if (line_of(head, line) && !(number_of(line, "gone", &gone) && gone)) ++*count;
    }
    return SUCCESS;
}

/* The n-th GPU that is not gone: those after one that is gone move up, as in the real library. */
int nvmlDeviceGetHandleByIndex_v2(unsigned int number, Device *device) {
    char head[WORD], line[LINE];
    int code = told(__func__);
    if (!opened) return UNINITIALIZED;
    if (code) return code;
    for (int gpu = 0; gpu < GPUS; gpu++) {
        long long gone = 0, lost = 0;
        snprintf(head, sizeof head, "gpu %d", gpu);
        if (!line_of(head, line) || (number_of(line, "gone", &gone) && gone)) continue;
        if (number--) continue;
        if (number_of(line, "lost", &lost) && lost) return (int)lost;
        *device = &table[gpu];
        return SUCCESS;
    }
    return INVALID;
}

static int copy(const char *line, const char *key, char *text, unsigned int size) {
    if (!text_of(line, key, text, size)) return NOT_SUPPORTED;
    for (char *at = text; *at; at++)
        if (*at == '_') *at = ' ';
    return SUCCESS;
}

int nvmlDeviceGetName(Device device, char *text, unsigned int size) {
    LINE_OF(device)
    return copy(line, "name", text, size);
}

int nvmlDeviceGetUUID(Device device, char *text, unsigned int size) {
    LINE_OF(device)
    return copy(line, "uuid", text, size);
}

int nvmlDeviceGetPciInfo_v3(Device device, Pci *pci) {
    LINE_OF(device)
    FIGURE(bus)
    memset(pci, 0, sizeof *pci);
    pci->bus = (unsigned int)bus;
    snprintf(pci->busId, sizeof pci->busId, "00000000:%02X:00.0", pci->bus);
    snprintf(pci->busIdLegacy, sizeof pci->busIdLegacy, "0000:%02X:00.0", pci->bus);
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
    LINE_OF(device)
    FIGURE(total_mib)
    FIGURE(used_mib)
    memory->total = (unsigned long long)total_mib << 20;
    memory->used = (unsigned long long)used_mib << 20;
    memory->free = memory->total - memory->used;
    return SUCCESS;
}

int nvmlDeviceGetMemoryInfo_v2(Device device, MemoryV2 *memory) {
    LINE_OF(device)
    FIGURE(total_mib)
    FIGURE(used_mib)
    FIGURE(reserved_mib)
    memory->total = (unsigned long long)total_mib << 20;
    memory->used = (unsigned long long)used_mib << 20;
    memory->reserved = (unsigned long long)reserved_mib << 20;
    memory->free = memory->total - memory->used - memory->reserved;
    return SUCCESS;
}

int nvmlDeviceGetUtilizationRates(Device device, Utilization *utilization) {
    LINE_OF(device)
    FIGURE(util)
    utilization->gpu = (unsigned int)util;
    utilization->memory = 0;
    return SUCCESS;
}

int nvmlDeviceGetTemperature(Device device, int sensor, unsigned int *celsius) {
    LINE_OF(device)
    FIGURE(temperature)
    (void)sensor;
    *celsius = (unsigned int)temperature;
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(Device device, unsigned int *milliwatts) {
    LINE_OF(device)
    FIGURE(power_mw)
    *milliwatts = (unsigned int)power_mw;
    return SUCCESS;
}

int nvmlDeviceGetClockInfo(Device device, int type, unsigned int *mhz) {
    LINE_OF(device)
    FIGURE(sm_mhz)
    if (type != 1) return NOT_SUPPORTED; /* NVML_CLOCK_SM */
    *mhz = (unsigned int)sm_mhz;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksEventReasons(Device device, unsigned long long *reasons) {
    LINE_OF(device)
    FIGURE(throttle)
    *reasons = (unsigned long long)throttle;
    return SUCCESS;
}

int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *reasons) {
    LINE_OF(device)
    FIGURE(throttle)
    *reasons = (unsigned long long)throttle;
    return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(Device device, int type, int counter, unsigned long long *count) {
    LINE_OF(device)
    FIGURE(ecc)
    /* Uncorrected ones since the driver was loaded; others are plenty and mean nothing. */
    *count = type == 1 && counter == 0 ? (unsigned long long)ecc : 4711;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(Device device, unsigned int *current, unsigned int *pending) {
    LINE_OF(device)
    FIGURE(mig)
    *current = *pending = (unsigned int)mig;
    return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(Device device, unsigned int *count) {
    LINE_OF(device)
    *count = 7;
    return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(Device device, unsigned int number, Device *instance) {
    LINE_OF(device)
    if (index_of(device) >= GPUS || number >= SLICES) return INVALID;
    Device found = &table[GPUS + index_of(device) * SLICES + (int)number];
    bad = open_line(found, line, __func__);
    if (!bad) *instance = found;
    return bad;
}

int nvmlDeviceGetComputeRunningProcesses_v3(Device device, unsigned int *count, Process *found) {
    LINE_OF(device)
    int place = index_of(device), seen = 0;
    FILE *file = script();
    if (!file) return UNINITIALIZED;
    while (seen < PROCESSES && fgets(line, sizeof line, file)) {
        long long gpu = -1, slice = -1, pid, used_mib;
        if (strncmp(line, "process ", 8) || !number_of(line, "gpu", &gpu) ||
            !number_of(line, "pid", &pid) || !number_of(line, "used_mib", &used_mib))
            continue;
        number_of(line, "slice", &slice);
        if (place != (slice < 0 ? gpu : GPUS + gpu * SLICES + slice)) continue;
        if (seen < (int)*count && found)
            found[seen] = (Process){(unsigned int)pid, (unsigned long long)used_mib << 20, 0, 0};
        seen++;
    }
    fclose(file);
    int fits = seen <= (int)*count;
    *count = (unsigned int)seen;
    return fits ? SUCCESS : TOO_SMALL;
}

int nvmlDeviceGetCpuAffinity(Device device, unsigned int size, unsigned long *words) {
    LINE_OF(device)
    FIGURE(cpus)
    memset(words, 0, size * sizeof *words);
    words[0] = (unsigned long)cpus;
    return SUCCESS;
}

int nvmlDeviceGetMemoryAffinity(Device device, unsigned int size, unsigned long *words, int scope) {
    LINE_OF(device)
    FIGURE(node)
    if (scope != 0) return INVALID; /* NVML_AFFINITY_SCOPE_NODE */
    memset(words, 0, size * sizeof *words);
    words[0] = 1UL << node;
    return SUCCESS;
}

/* `link A B …`, with A < B. */
static int link_line(Device one, Device other, char *line, const char *function) {
    int bad = open_line(one, line, function), a = index_of(one), b = index_of(other);
    char head[WORD];
    if (!bad) bad = open_line(other, line, function);
    if (bad) return bad;
    snprintf(head, sizeof head, "link %d %d", a < b ? a : b, a < b ? b : a);
    return line_of(head, line) ? SUCCESS : NOT_SUPPORTED;
}

int nvmlDeviceGetTopologyCommonAncestor(Device one, Device other, int *level) {
    char line[LINE];
    int bad = link_line(one, other, line, __func__);
    if (bad) return bad;
    FIGURE(level_code)
    *level = (int)level_code;
    return SUCCESS;
}

int nvmlDeviceGetP2PStatus(Device one, Device other, int what, int *status) {
    char line[LINE];
    int bad = link_line(one, other, line, __func__);
    if (bad) return bad;
    FIGURE(nvlink)
    *status = what == 2 && nvlink ? 0 : 5; /* NVML_P2P_CAPS_INDEX_NVLINK; ok, not supported */
    return SUCCESS;
}

int nvmlEventSetCreate(void **set) {
    int code = told(__func__);
    if (!opened) return UNINITIALIZED;
    if (code) return code;
    *set = &event_set;
    return SUCCESS;
}

int nvmlEventSetFree(void *set) {
    (void)set;
    return opened ? SUCCESS : UNINITIALIZED;
}

int nvmlDeviceRegisterEvents(Device device, unsigned long long types, void *set) {
    LINE_OF(device)
    (void)set;
    return types == 8 ? SUCCESS : NOT_SUPPORTED; /* nvmlEventTypeXidCriticalError */
}

/* `event gpu=0 xid=79 number=1`: each is given out once; numbers grow. */
int nvmlEventSetWait_v2(void *set, Event *event, unsigned int timeout_ms) {
    char line[LINE];
    int code = told(__func__);
    (void)set, (void)timeout_ms;
    if (!opened) return UNINITIALIZED;
    if (code) return code;
    FILE *file = script();
    if (!file) return UNINITIALIZED;
    int found = TIMED_OUT;
    while (found && fgets(line, sizeof line, file)) {
        long long gpu, xid, number;
        if (strncmp(line, "event ", 6) || !number_of(line, "gpu", &gpu) ||
            !number_of(line, "xid", &xid) || !number_of(line, "number", &number) ||
            number <= delivered)
            continue;
        *event = (Event){&table[gpu], 8, (unsigned long long)xid, ~0u, ~0u};
        delivered = (long)number;
        found = SUCCESS;
    }
    fclose(file);
    return found;
}
