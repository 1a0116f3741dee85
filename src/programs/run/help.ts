import { deviceHelp, deviceModel } from '../../attach/device-models.js';
import { allDrivers } from '../../drivers/index.js';
import { versionText } from '../../wire/qmp/version.js';

const COMMON = `  -blockdev driver=DRIVER,node-name=NAME,...
                        open an image; options are those of QMP's blockdev-add, dotted, or one JSON object
  -nbd-server addr.type=unix,addr.path=PATH | addr.type=inet,addr.host=HOST,addr.port=PORT
                        start the NBD server (max-connections=N limits its clients)
  -export type=nbd,id=ID,node-name=NAME[,name=EXPORT][,writable=on]
                        serve a node over it
  -object TYPE,id=ID[,PROPERTY=VALUE]...
                        make an object: a secret, credentials, limits (help lists the types)
  -chardev socket,id=ID,path=PATH,server=on,wait=off
                        a socket for a monitor (host= and port=, or fd=, instead of path=; abstract=on, reconnect=N,
                        tls-creds=; x-clients=1 serves one client after the other); also pty, stdio, pipe,
                        null, ringbuf, file, mux (mux=on: monitors share it; logfile=FILE keeps what is written)
  -state DIR            keep there what the daemon is, and be that again when started anew (docs/STATE.md)
  -takeover PATH        wait there to take the place of a process that serves (docs/TAKEOVER.md)
  -trace [[enable=]PATTERN][,events=FILE][,file=FILE]
                        tell what happens at trace points (-trace help lists them)
  -pidfile FILE         write the process's number there
  -metrics unix:PATH | HOST:PORT[,token-file=FILE]
                        numbers for Prometheus at /metrics; beyond this machine only with a token
  -protect-shared-bases refuse block-commit where other images stand on what it changes; they are looked for in the
                        folders of the chain's images, and where -shared-bases-folder FOLDER says (more than once)
  -daemonize            go on in the background
  -help                 this text
  -version              the version
`;

export const HELP = {
  machine: `usage: livedisk run [OPTION]...

Serves the disks of a machine, driven as QEMU is: the options are QEMU's (one dash or two).

  -add-fd fd=N,set=M    /dev/fdset/M stands for the file that descriptor N is open on
  -drive file=FILE,if=none|virtio|ide,id=ID,format=FORMAT,...
                        a drive (-hda FILE, -cdrom FILE and FILE alone are short for some)
  -device virtio-blk,drive=DRIVE|NODE,id=ID[,x-endpoint=unix:PATH|vhost-user:PATH]
                        the guest's disk; an NBD client of its endpoint is the guest, or over vhost-user a machine
                        (share-rw=, write-cache=, rerror=, werror= as in QEMU); -device help lists models
  --machine[=PROGRAM]   starts a machine for these disks, with the rest of the command line: see livedisk machine
  -snapshot             what is written to drives is not kept
  -S                    the guest waits for 'cont'
  -loadvm TAG           begin in the state that savevm has saved
  -incoming tcp:HOST:PORT | unix:PATH | fd:N | file:PATH | exec:COMMAND | defer
                        a machine comes from there (migrate); its images are the other end's until then
  -qmp unix:PATH,server=on,wait=off
                        QMP on a socket (-qmp-pretty indents; tcp:HOST:PORT; several may be given)
  -monitor stdio | unix:PATH,server=on,wait=off | none
                        the human monitor
  -mon chardev=ID,mode=control|readline
                        a monitor on a -chardev
  -d trace:PATTERN,...  trace points that match (-d help lists what else there is, of processors)
  -D FILE               what they tell goes there
${COMMON}
Options about processors, memory, display, network and firmware are taken and mean nothing here.
`,
  'storage-daemon': `usage: livedisk storage-daemon [OPTION]...

Serves disks as qemu-storage-daemon does, with its options, taken in their order.

  -monitor chardev=ID[,mode=control][,pretty=on]
                        QMP on a -chardev
${COMMON}`,
} as const;

/** What a command line asks to be told in place of all else; `status` with which the program ends then, 0 unless said. */
export type Question =
  | { text: string; status?: number }
  | 'help'
  | 'version'
  | 'devices'
  | 'formats'
  | 'machines'
  | { properties: string };

/** Errors: invalid for properties of a model that is none. */
export function answerTo(question: Question, kind: 'machine' | 'storage-daemon'): string {
  switch (question) {
    case 'help':
      return HELP[kind];
    case 'version':
      return versionText(PROGRAM_NAMES[kind]);
    case 'devices':
      return deviceHelp();
    case 'formats':
      return formatHelp();
    case 'machines':
      return MACHINES;
    default:
      return 'text' in question ? question.text : propertyHelp(question.properties);
  }
}

/** As QEMU's programs call themselves. */
const PROGRAM_NAMES = { machine: 'QEMU emulator', 'storage-daemon': 'qemu-storage-daemon' } as const;

const MACHINES = `Supported machines are:
microvm              microvm (i386)
pc                   Standard PC (i440FX + PIIX, 1996) (default)
q35                  Standard PC (Q35 + ICH9, 2009)
isapc                ISA-only PC
none                 empty machine
x-remote             Experimental remote machine
`;

/** Drivers that may be named, for those who may write and those who only read. */
function formatHelp(): string {
  const names = allDrivers.map(({ name }) => name).sort();
  return ['Supported formats:', 'Supported formats (read-only):']
    .map((title) => `${title} ${names.join(' ')}\n`)
    .join('');
}

function propertyHelp(name: string): string {
  const { name: model, properties } = deviceModel(name);
  if (!properties) return `There are no options for ${model}.\n`;
  const lines = Object.entries(properties)
    .sort(([a], [b]) => (a < b ? -1 : 1))
    .map(([key, { type }]) => `  ${`${key}=<${type.name}>`}\n`);
  return `${model} options:\n${lines.join('')}`;
}
