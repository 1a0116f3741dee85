import { BlockError } from '../../base/error.js';
import { bool, enumOf, int, optional, size, str, struct, type Type } from '../../schema/types.js';
import { parseImageOpts } from '../arguments/image-opts.js';
import { parseKeyval } from '../arguments/keyval.js';

/**
 * Options of qemu-system-x86_64 that are about a machine's processor, memory, display, network and firmware. They mean
 * nothing where no processor runs: their form is checked where QEMU checks it, and that is all.
 */

/** Those without a value. */
export const FLAGS_WITHOUT_EFFECT: ReadonlySet<string> = new Set(
  (
    '-async-teardown -enable-kvm -enable-sync-profile -full-screen -mem-prealloc -no-acpi -no-fd-bootchk -no-hpet ' +
    '-nodefaults -no-user-config -nographic -only-migratable -portrait -s -singlestep -usb ' +
    '-win2k-hack -xen-attach -xen-domid-restrict'
  ).split(' '),
);

type Check = (value: string) => void;

const anything: Check = () => undefined;

/** A keyval option whose members are all known. */
function members(type: Type<unknown>, implicitKey?: string): Check {
  return (value) => {
    const mode = value.startsWith('{') ? 'qmp' : 'keyval';
    type.parse(parseKeyval(value, implicitKey), '', mode);
  };
}

const MACHINE_WORDS: ReadonlySet<string> = new Set(['help', '?']);

const SMP = struct('SMPConfiguration', {
  cpus: optional(int),
  sockets: optional(int),
  dies: optional(int),
  clusters: optional(int),
  cores: optional(int),
  threads: optional(int),
  maxcpus: optional(int),
});

const DISPLAYS = enumOf('DisplayType', [
  ...(['default', 'none', 'gtk', 'sdl', 'egl-headless', 'curses', 'cocoa', 'spice-app', 'dbus'] as const),
  'vnc',
]);

function checkDisplay(value: string): void {
  const [type = ''] = value.split(/[,=]/);
  DISPLAYS.parse(type, 'type', 'keyval');
}

const VGA = 'none std cirrus vmware xenfb qxl tcx cg3 virtio'.split(' ');

function checkVga(value: string): void {
  const [type = ''] = value.split(',');
  if (!VGA.includes(type)) throw new BlockError('invalid', `unknown vga type: ${value}`);
}

/** As old options are: `size=4G,slots=2`, the first word without its name. */
/** -m: the guest's memory in bytes; undefined where no size is given. A number by itself counts mebibytes. */
export function parseMemory(value: string): number | undefined {
  const options = parseImageOpts(value, { impliedKey: 'size', warn: () => undefined });
  const bytes = options.take('size');
  options.take('slots');
  options.take('maxmem');
  refuseRest(options.firstKey);
  if (typeof bytes !== 'string' || bytes === '') return undefined;
  return size.parse(/^\d+$/.test(bytes) ? `${bytes}M` : bytes, 'size', 'flat');
}

function refuseRest(key: string | undefined): void {
  if (key !== undefined) throw new BlockError('invalid', `Invalid parameter '${key}'`);
}

const BOOT = struct('BootConfiguration', {
  order: optional(str),
  once: optional(str),
  menu: optional(bool),
  splash: optional(str),
  'splash-time': optional(int),
  'reboot-timeout': optional(int),
  strict: optional(bool),
});

function only(keys: string, impliedKey?: string): Check {
  const known = new Set(keys.split(' '));
  return (value) => {
    const options = parseImageOpts(value, {
      ...(impliedKey !== undefined && { impliedKey }),
      warn: () => undefined,
    });
    refuseRest(options.entries().find(([key]) => !known.has(key))?.[0]);
  };
}

/** Disks whose defaults -global would change; livedisk has no such defaults. */
const DISK_MODELS = /(^|driver=)(virtio-blk|scsi-hd|scsi-cd|scsi-disk|ide-hd|ide-cd|nvme|usb-storage|floppy)/;

function checkGlobal(value: string): void {
  if (DISK_MODELS.test(value)) throw new BlockError('unsupported', 'not supported by livedisk for disks');
}

/** Those with a value, and what is looked at in it. */
export const VALUED_WITHOUT_EFFECT: Readonly<Record<string, Check>> = {
  '-accel': anything,
  '-acpitable': anything,
  '-append': anything,
  '-audio': anything,
  '-audiodev': anything,
  '-bios': anything,
  '-boot': members(BOOT, 'order'),
  '-compat': anything,
  '-cpu': anything,
  '-debugcon': anything,
  '-dfilter': anything,
  '-display': checkDisplay,
  '-dtb': anything,
  '-echr': anything,
  '-fsdev': anything,
  '-fw_cfg': anything,
  '-gdb': anything,
  '-global': checkGlobal,
  '-icount': anything,
  '-initrd': anything,
  '-k': anything,
  '-kernel': anything,
  '-L': anything,
  '-mem-path': anything,
  '-msg': only('timestamp guest-name'),
  '-net': anything,
  '-netdev': anything,
  '-nic': anything,
  '-numa': anything,
  '-option-rom': anything,
  '-overcommit': only('mem-lock cpu-pm'),
  '-rotate': anything,
  '-rtc': only('base clock driftfix'),
  '-sandbox': only('enable obsolete elevateprivileges spawn resourcecontrol', 'enable'),
  '-seed': anything,
  '-smbios': anything,
  '-smp': members(SMP, 'cpus'),
  '-spice': anything,
  '-tb-size': anything,
  '-tpmdev': anything,
  '-usbdevice': anything,
  '-vga': checkVga,
  '-virtfs': anything,
  '-vnc': anything,
  '-watchdog-action': anything,
  '-xen-domid': anything,
};

/** Options that would change what livedisk does, and cannot. */
export const UNSUPPORTED_OPTIONS: ReadonlyMap<string, 'flag' | 'valued'> = new Map(
  Object.entries({
    '-audio-help': 'flag',
    '-chroot': 'valued',
    '-dump-vmstate': 'valued',
    '-iscsi': 'valued',
    '-plugin': 'valued',
    '-preconfig': 'flag',
    '-qtest': 'valued',
    '-qtest-log': 'valued',
    '-readconfig': 'valued',
    '-runas': 'valued',
    '-set': 'valued',
    '-writeconfig': 'valued',
  } as const),
);

/** The type of machine in the value of -machine. Errors: invalid in QEMU's words. */
export function machineType(value: string): string | undefined {
  const { type } = parseKeyval(value, 'type');
  return typeof type === 'string' ? type : undefined;
}

export function isHelp(value: string): boolean {
  return MACHINE_WORDS.has(value) || /(^|,)(help|\?)(,|$)/.test(value);
}

/** The guest's name in the value of -name. */
export function guestName(value: string): string | undefined {
  const options = parseImageOpts(value, { impliedKey: 'guest', warn: () => undefined });
  const name = options.take('guest');
  options.take('process');
  options.take('debug-threads');
  refuseRest(options.firstKey);
  return typeof name === 'string' ? name : undefined;
}

/** Errors: invalid in QEMU's words. */
export function checkUuid(value: string): string {
  if (/^[0-9a-f]{8}(-?[0-9a-f]{4}){3}-?[0-9a-f]{12}$/i.test(value)) return value.toLowerCase();
  throw new BlockError('invalid', 'failed to parse UUID string: wrong format');
}
