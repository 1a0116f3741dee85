import type { JsonObject } from '../../schema/types.js';

/** Commands of ours that the program that runs the guest answers better. */
const ANSWERED_THERE = new Set(
  (
    'announce-self balloon device-list-properties qom-list qom-list-properties qom-list-types query-balloon ' +
    'query-command-line-options query-cpu-definitions query-cpus-fast query-current-machine query-display-options ' +
    'query-hotpluggable-cpus query-iothreads query-kvm query-machines query-memdev query-memory-devices ' +
    'query-memory-size-summary query-mice query-name query-pci query-pr-managers query-target query-tpm query-tpm-models ' +
    'query-tpm-types query-uuid query-vnc query-vnc-servers query-chardev-backends chardev-add set-action ' +
    'system_powerdown system_reset system_wakeup'
  ).split(' '),
);

/** Whether a command goes there as it is. `own`: those that livedisk has. */
export function handedOn(name: string, own: ReadonlySet<string>): boolean {
  return !own.has(name) || ANSWERED_THERE.has(name);
}

/** Commands that concern both, and are described as they are there. */
export const SHARED: ReadonlySet<string> = new Set([
  ...['cont', 'device_add', 'device_del', 'object-add', 'object-del', 'qom-get', 'qom-set', 'query-chardev'],
  ...['chardev-change', 'chardev-remove', 'chardev-send-break', 'query-status', 'ringbuf-read'],
  ...['ringbuf-write', 'stop'],
]);

/** What of a move's settings is about memory, too: the same command for the other program, or none. */
export const MEMORY_SETTINGS: ReadonlyArray<
  readonly [command: string, ofMemory: (args: JsonObject) => JsonObject | undefined]
> = [
  [
    'migrate-set-capabilities',
    ({ capabilities }) => {
      const theirs = (capabilities as JsonObject[]).filter(
        ({ capability }) => capability === 'auto-converge' || capability === 'xbzrle',
      );
      return theirs.length === 0 ? undefined : { capabilities: theirs };
    },
  ],
  [
    'migrate-set-parameters',
    (args) => {
      const theirs = Object.entries(args).filter(([name]) =>
        /^(downtime-limit|max-bandwidth|xbzrle-cache-size|cpu-throttle-.*|throttle-.*)$/.test(name),
      );
      return theirs.length === 0 ? undefined : Object.fromEntries(theirs);
    },
  ],
];

/** Whose argument names a character device. */
export const OF_CHARACTER_DEVICES: ReadonlyArray<readonly [command: string, argument: string]> = [
  ['chardev-change', 'id'],
  ['chardev-remove', 'id'],
  ['chardev-send-break', 'id'],
  ['ringbuf-read', 'device'],
  ['ringbuf-write', 'device'],
];

const MEMORY = 'the memory of this machine would not be in it: snapshot its disks (blockdev-snapshot-sync)';
const MEDIUM =
  'a medium of this machine cannot be changed while it runs: unplug the disk, or start it with another';

const REFUSED: ReadonlyMap<string, string> = new Map([
  ...['snapshot-save', 'snapshot-load', 'savevm', 'loadvm'].map((name) => [name, MEMORY] as const),
  ...['eject', 'change', 'blockdev-open-tray', 'blockdev-close-tray'].map((name) => [name, MEDIUM] as const),
  ...['blockdev-remove-medium', 'blockdev-insert-medium', 'blockdev-change-medium'].map(
    (name) => [name, MEDIUM] as const,
  ),
]);

/** Why a command of ours cannot be done; it is named. */
export function refusalOf(command: string): string | undefined {
  const why = REFUSED.get(command);
  return why === undefined ? undefined : `${command}: ${why}`;
}

/** What is ours of the other program's events: its own disks are ours. */
export function isOfDisks(event: string): boolean {
  return /^(BLOCK_|JOB_|QUORUM_)/.test(event);
}
