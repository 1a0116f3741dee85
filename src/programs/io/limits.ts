/** Longest request, as QEMU has it: INT_MAX rounded down to sectors. */
export const MAX_IO_BYTES = 2 ** 31 - 512;
