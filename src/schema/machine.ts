import { HOST_MEMORY_POLICY } from './objects.js';
import {
  arrayOf,
  bool,
  enumOf,
  type Infer,
  int,
  optional,
  required,
  size,
  str,
  struct,
  type Type,
  uint32,
  union,
} from './types.js';

/** What tools ask of a machine before they do anything (machine.json, misc.json, ui.json and others of QEMU 7.2). */

const NOTHING = struct('q_empty', {});
const NOTHINGS: Type<unknown> = arrayOf(NOTHING);

const YankInstance = union(
  'YankInstance',
  { type: required(enumOf('YankInstanceType', ['block-node', 'chardev', 'migration'])) },
  'type',
  {
    'block-node': struct('YankInstanceBlockNode', { 'node-name': required(str) }),
    chardev: struct('YankInstanceChardev', { id: required(str) }),
    migration: NOTHING,
  },
);

export const MACHINE_COMMANDS = {
  balloon: struct('balloon-arg', { value: required(int) }),
  'query-balloon': NOTHING,
  'query-command-line-options': struct('query-command-line-options-arg', { option: optional(str) }),
  'query-cpu-definitions': NOTHING,
  'query-cpus-fast': NOTHING,
  'query-current-machine': NOTHING,
  'query-display-options': NOTHING,
  'query-hotpluggable-cpus': NOTHING,
  'query-iothreads': NOTHING,
  'query-kvm': NOTHING,
  'query-machines': NOTHING,
  'query-memdev': NOTHING,
  'query-memory-devices': NOTHING,
  'query-memory-size-summary': NOTHING,
  'query-mice': NOTHING,
  'query-name': NOTHING,
  'query-pci': NOTHING,
  'query-pr-managers': NOTHING,
  'query-target': NOTHING,
  'query-tpm': NOTHING,
  'query-tpm-models': NOTHING,
  'query-tpm-types': NOTHING,
  'query-uuid': NOTHING,
  'query-vnc': NOTHING,
  'query-vnc-servers': NOTHING,
  'query-yank': NOTHING,
  system_powerdown: NOTHING,
  system_reset: NOTHING,
  system_wakeup: NOTHING,
  yank: struct('yank-arg', { instances: required(arrayOf(YankInstance)) }),
} as const;

/** Commands that may run ahead of others. */
export const OUT_OF_BAND: ReadonlySet<string> = new Set([
  'migrate-pause',
  'migrate-recover',
  'query-yank',
  'yank',
]);

const TARGET = enumOf('SysEmuTarget', ['x86_64']);
const TPM_MODEL = enumOf('TpmModel', ['tpm-tis', 'tpm-crb', 'tpm-spapr']);
const TPM_TYPE = enumOf('TpmType', ['passthrough', 'emulator']);
const PARAMETER_TYPE = enumOf('CommandLineParameterType', ['string', 'boolean', 'number', 'size']);

export type ParameterType = 'string' | 'boolean' | 'number' | 'size';

const CommandLineOption = struct('CommandLineOptionInfo', {
  option: required(str),
  parameters: required(
    arrayOf(
      struct('CommandLineParameterInfo', {
        name: required(str),
        type: required(PARAMETER_TYPE),
        help: optional(str),
        default: optional(str),
      }),
    ),
  ),
});

const Memdev = struct('Memdev', {
  id: optional(str),
  size: required(size),
  merge: required(bool),
  dump: required(bool),
  prealloc: required(bool),
  share: required(bool),
  reserve: optional(bool),
  'host-nodes': required(arrayOf(uint32)),
  policy: required(HOST_MEMORY_POLICY),
});
export type Memdev = Infer<typeof Memdev>;

export const MACHINE_RETURNS = {
  'query-balloon': struct('BalloonInfo', { actual: required(int) }),
  'query-command-line-options': arrayOf(CommandLineOption),
  'query-cpu-definitions': NOTHINGS,
  'query-cpus-fast': arrayOf(
    struct('CpuInfoFast', {
      'cpu-index': required(int),
      'qom-path': required(str),
      'thread-id': required(int),
      target: required(TARGET),
    }),
  ),
  'query-current-machine': struct('CurrentMachineParams', { 'wakeup-suspend-support': required(bool) }),
  'query-display-options': struct('DisplayOptions', { type: required(enumOf('DisplayType', ['none'])) }),
  'query-hotpluggable-cpus': NOTHINGS,
  'query-iothreads': arrayOf(
    struct('IOThreadInfo', {
      id: required(str),
      'thread-id': required(int),
      'poll-max-ns': required(int),
      'poll-grow': required(int),
      'poll-shrink': required(int),
      'aio-max-batch': required(int),
    }),
  ),
  'query-kvm': struct('KvmInfo', { enabled: required(bool), present: required(bool) }),
  'query-machines': arrayOf(
    struct('MachineInfo', {
      name: required(str),
      alias: optional(str),
      'is-default': optional(bool),
      'cpu-max': required(int),
      'hotpluggable-cpus': required(bool),
      'numa-mem-supported': required(bool),
      deprecated: required(bool),
      'default-cpu-type': optional(str),
      'default-ram-id': optional(str),
    }),
  ),
  'query-memdev': arrayOf(Memdev),
  'query-memory-devices': NOTHINGS,
  'query-memory-size-summary': struct('MemoryInfo', {
    'base-memory': required(int),
    'plugged-memory': optional(int),
  }),
  'query-mice': NOTHINGS,
  'query-name': struct('NameInfo', { name: optional(str) }),
  'query-pci': NOTHINGS,
  'query-pr-managers': NOTHINGS,
  'query-target': struct('TargetInfo', { arch: required(TARGET) }),
  'query-tpm': NOTHINGS,
  'query-tpm-models': arrayOf(TPM_MODEL),
  'query-tpm-types': arrayOf(TPM_TYPE),
  'query-uuid': struct('UuidInfo', { UUID: required(str) }),
  'query-vnc': struct('VncInfo', { enabled: required(bool) }),
  'query-vnc-servers': NOTHINGS,
  'query-yank': arrayOf(YankInstance),
} satisfies { readonly [command: string]: Type<unknown> };
