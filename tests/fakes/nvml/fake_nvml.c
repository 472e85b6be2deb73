/* A small libnvidia-ml.so.1 for the real nvidia-ml-py: two GPUs, and the ways in which drivers disappoint.
 *
 * FAKE_NVML chooses the disappointment: no_driver, no_permission, no_energy, lost (after FAKE_NVML_CALLS readings),
 * mig (GPU 0 is cut into instances), foreign_pids (ids of another namespace), unlike (the two GPUs differ).
 * Compiled with -DOLD_DRIVER it lacks the functions that came after 2021. Signatures follow nvml.h.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    SUCCESS = 0, INVALID_ARGUMENT = 2, NOT_SUPPORTED = 3, NO_PERMISSION = 4, NOT_FOUND = 6, INSUFFICIENT_SIZE = 7,
    DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15
};

typedef struct {
    const char *name, *uuid, *bus;
    int major, minor, instance;
    unsigned power_mw, limit_mw, clock_mhz, max_clock_mhz, memory_clock_mhz, temperature_c;
    unsigned long long reasons, total, used, energy_mj;
} gpu_t;

static gpu_t gpus[3] = {
    {"NVIDIA H100 80GB HBM3", "GPU-11111111", "00000000:3B:00.0", 9, 0, 0, 350500, 700000, 1980, 1980, 2619, 41, 0x0,
     85520809984ULL, 3221225472ULL, 1000000},
    {"NVIDIA H100 80GB HBM3", "GPU-22222222", "00000000:86:00.0", 9, 0, 0, 699000, 700000, 1200, 1980, 2619, 86, 0x24,
     85520809984ULL, 1073741824ULL, 2000000},
    {"NVIDIA H100 80GB HBM3 MIG 1g.10gb", "MIG-33333333", "", 9, 0, 1, 0, 0, 0, 0, 0, 0, 0x0, 10200547328ULL,
     524288000ULL, 0},
};

typedef gpu_t *device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned gpu, memory; } utilization_t;
typedef struct { unsigned pid; unsigned long long used; unsigned gpu_instance, compute_instance; } process_t;

static int mode_is(const char *name) {
    const char *mode = getenv("FAKE_NVML");
    return mode && strcmp(mode, name) == 0;
}

/* Every counter goes through here, so that the driver can vanish in mid-run. */
static int reading(void) {
    static int calls = 0;
    const char *limit = getenv("FAKE_NVML_CALLS");
    if (mode_is("no_permission")) return NO_PERMISSION;
    if (mode_is("lost") && ++calls > (limit ? atoi(limit) : 0)) return GPU_IS_LOST;
    return SUCCESS;
}

static int give(unsigned *target, unsigned value) {
    int code = reading();
    if (code == SUCCESS) *target = value;
    return code;
}

static int give_text(char *target, unsigned size, const char *text) {
    snprintf(target, size, "%s", text);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned flags) { (void)flags; return mode_is("no_driver") ? DRIVER_NOT_LOADED : SUCCESS; }
int nvmlShutdown(void) { return SUCCESS; }
const char *nvmlErrorString(int code) { (void)code; return "a fault of the fake driver"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { return give_text(text, size, "570.86.10"); }
int nvmlSystemGetCudaDriverVersion(int *version) { *version = 12080; return SUCCESS; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return SUCCESS; }

int nvmlDeviceGetHandleByIndex_v2(unsigned index, device_t *device) {
    if (index > 1) return INVALID_ARGUMENT;
    *device = &gpus[index];
    return SUCCESS;
}

int nvmlDeviceGetHandleByUUID(const char *uuid, device_t *device) {
    for (int i = 0; i < 3; i++)
        if (strcmp(gpus[i].uuid, uuid) == 0) { *device = &gpus[i]; return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *bus, device_t *device) {
    for (int i = 0; i < 2; i++)
        if (strcmp(gpus[i].bus, bus) == 0) { *device = &gpus[i]; return SUCCESS; }
    return NOT_FOUND;
}

int nvmlDeviceGetName(device_t device, char *text, unsigned size) {
    return give_text(text, size, mode_is("unlike") && device == &gpus[1] ? "NVIDIA T4" : device->name);
}

int nvmlDeviceGetUUID(device_t device, char *text, unsigned size) { return give_text(text, size, device->uuid); }

int nvmlDeviceGetCudaComputeCapability(device_t device, int *major, int *minor) {
    if (device->instance) return INVALID_ARGUMENT;
    *major = device->major;
    *minor = device->minor;
    return SUCCESS;
}

int nvmlDeviceGetMigMode(device_t device, unsigned *current, unsigned *pending) {
    *current = *pending = mode_is("mig") && device == &gpus[0];
    return device->instance ? NOT_SUPPORTED : SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(device_t device, unsigned *count) { (void)device; *count = 7; return SUCCESS; }

/* The first slot is empty: only slot 2 holds an instance. */
int nvmlDeviceGetMigDeviceHandleByIndex(device_t device, unsigned index, device_t *instance) {
    (void)device;
    if (index != 2) return NOT_FOUND;
    *instance = &gpus[2];
    return SUCCESS;
}

int nvmlDeviceGetDeviceHandleFromMigDeviceHandle(device_t instance, device_t *device) {
    (void)instance;
    *device = &gpus[0];
    return SUCCESS;
}

int nvmlDeviceGetPowerUsage(device_t device, unsigned *mw) { return give(mw, device->power_mw); }
int nvmlDeviceGetEnforcedPowerLimit(device_t device, unsigned *mw) { return give(mw, device->limit_mw); }
/* GPU 1 was held below what it starts with. */
int nvmlDeviceGetPowerManagementDefaultLimit(device_t device, unsigned *mw) { return give(mw, device == &gpus[1] ? 750000 : device->limit_mw); }
int nvmlDeviceGetTemperature(device_t device, unsigned kind, unsigned *c) { (void)kind; return give(c, device->temperature_c); }
int nvmlDeviceGetMaxClockInfo(device_t device, unsigned kind, unsigned *mhz) { return give(mhz, kind == 2 ? device->memory_clock_mhz : device->max_clock_mhz); }

int nvmlDeviceGetClockInfo(device_t device, unsigned kind, unsigned *mhz) {
    return give(mhz, kind == 2 ? device->memory_clock_mhz : device->clock_mhz);
}

/* 35 J more at each reading. */
int nvmlDeviceGetTotalEnergyConsumption(device_t device, unsigned long long *mj) {
    int code = mode_is("no_energy") ? NOT_SUPPORTED : reading();
    if (code == SUCCESS) { *mj = device->energy_mj; device->energy_mj += 35000; }
    return code;
}

int nvmlDeviceGetUtilizationRates(device_t device, utilization_t *rates) {
    (void)device;
    rates->gpu = 97;
    rates->memory = 40;
    return reading();
}

int nvmlDeviceGetMemoryInfo(device_t device, memory_t *memory) {
    memory->total = device->total;
    memory->used = device->used;
    memory->free = device->total - device->used;
    return reading();
}

static int reasons(device_t device, unsigned long long *bits) {
    int code = reading();
    if (code == SUCCESS) *bits = device->reasons;
    return code;
}

static int list(const process_t *known, unsigned number, unsigned *count, process_t *processes) {
    int code = reading();
    if (code != SUCCESS) return code;
    unsigned room = *count;
    *count = number;
    if (room < number) return INSUFFICIENT_SIZE;
    if (number) memcpy(processes, known, number * sizeof(process_t));
    return SUCCESS;
}

/* This process and process 1 on GPU 0, nobody on GPU 1. */
static int compute(device_t device, unsigned *count, process_t *processes) {
    process_t own[2] = {{(unsigned)getpid(), 2147483648ULL, 0, 0}, {1, 1073741824ULL, 0, 0}};
    process_t foreign[2] = {{4000001, 2147483648ULL, 0, 0}, {4000002, 1073741824ULL, 0, 0}};
    return list(mode_is("foreign_pids") ? foreign : own, device == &gpus[1] ? 0 : 2, count, processes);
}

/* The same process again: adding both lists would count it twice. */
static int graphics(device_t device, unsigned *count, process_t *processes) {
    process_t own[1] = {{(unsigned)getpid(), 2147483648ULL, 0, 0}};
    return list(own, device == &gpus[1] || mode_is("foreign_pids") ? 0 : 1, count, processes);
}

#ifdef OLD_DRIVER
int nvmlDeviceGetCurrentClocksThrottleReasons(device_t device, unsigned long long *bits) { return reasons(device, bits); }
int nvmlDeviceGetComputeRunningProcesses_v2(device_t device, unsigned *count, process_t *processes) { return compute(device, count, processes); }
int nvmlDeviceGetGraphicsRunningProcesses_v2(device_t device, unsigned *count, process_t *processes) { return graphics(device, count, processes); }
#else
int nvmlDeviceGetCurrentClocksEventReasons(device_t device, unsigned long long *bits) { return reasons(device, bits); }
int nvmlDeviceGetComputeRunningProcesses_v3(device_t device, unsigned *count, process_t *processes) { return compute(device, count, processes); }
int nvmlDeviceGetGraphicsRunningProcesses_v3(device_t device, unsigned *count, process_t *processes) { return graphics(device, count, processes); }
#endif
