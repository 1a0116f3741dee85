import { HELP as DEMO_HELP } from '../demo/main.js';
import { HELP as IMG_HELP } from '../img/main.js';
import { commandSummaries } from '../io/command.js';
import { HELP as IO_HELP } from '../io/main.js';
import { LAUNCHERS_USAGE } from '../launchers.js';
import { MACHINE_USAGE } from '../machine/help.js';
import { MOVE_USAGE } from '../move/main.js';
import { HELP as NBD_HELP } from '../nbd/arguments.js';
import { POINTS_USAGE } from '../points/main.js';
import { HELP as RUN_HELP } from '../run/help.js';
import { SHOW_USAGE } from '../screen/show.js';
import { TOP_USAGE } from '../screen/top.js';
import { USAGE as SHELL_USAGE } from '../shell/help.js';
import { SUBCOMMANDS, usage } from '../subcommands.js';
import { WEB_USAGE } from '../web/main.js';
import type { Page } from './roff.js';

/** What each subcommand prints when it is asked for help. */
const HELP_TEXTS: Readonly<Record<string, string>> = {
  demo: DEMO_HELP,
  img: IMG_HELP,
  io: IO_HELP,
  launchers: LAUNCHERS_USAGE,
  machine: MACHINE_USAGE,
  move: MOVE_USAGE,
  nbd: NBD_HELP,
  points: POINTS_USAGE,
  run: RUN_HELP.machine,
  shell: SHELL_USAGE,
  show: SHOW_USAGE,
  'storage-daemon': RUN_HELP['storage-daemon'],
  top: TOP_USAGE,
  web: WEB_USAGE,
};

type Examples = Page['examples'];

const EXAMPLES: Readonly<Record<string, Examples>> = {
  img: [
    [
      'An image of 10 GiB, and an overlay on it:',
      'livedisk img create -f qcow2 a.qcow2 10G\nlivedisk img create -f qcow2 -b a.qcow2 -F qcow2 b.qcow2',
    ],
    [
      'A copy in another format, with the hash of its content:',
      'livedisk img convert -O raw --checksum sha256 b.qcow2 copy.raw',
    ],
  ],
  io: [
    [
      'A pattern is written and read back:',
      "livedisk io -c 'write -P 0xab 0 64k' -c 'read -P 0xab 0 64k' a.qcow2",
    ],
  ],
  launchers: [['Scripts made for QEMU use livedisk:', 'livedisk launchers ./bin\nPATH=$PWD/bin:$PATH']],
  machine: [
    [
      'A machine on a disk of ours, and a snapshot while it runs:',
      'livedisk machine -M q35 -m 512 -drive if=virtio,file=a.qcow2,node-name=A -nographic -qmp unix:./qmp.sock,server=on,wait=off\nlivedisk shell ./qmp.sock blockdev-snapshot-sync node-name=A snapshot-file=b.qcow2 snapshot-node-name=B',
    ],
  ],
  move: [
    [
      'What it would be, and then the move:',
      'livedisk move --dry-run --storage there:49153 ./qmp.sock tcp:there:6666\nlivedisk move --storage there:49153 ./qmp.sock tcp:there:6666',
    ],
  ],
  nbd: [
    [
      'An image is served until Ctrl-C, and looked at:',
      'livedisk nbd -t -k ./disk.nbd -f qcow2 a.qcow2\nnbdinfo nbd+unix:///?socket=./disk.nbd',
    ],
  ],
  points: [
    [
      'A moment gets a name, a week of them is kept, and one is gone back to when nobody writes:',
      'livedisk points create --keep 7 ./qmp.sock monday\nlivedisk points ./qmp.sock\nlivedisk points revert --dry-run ./qmp.sock monday',
    ],
  ],
  run: [
    [
      "A guest's disk with an endpoint for its machine, and a monitor:",
      'livedisk run -blockdev node-name=A,driver=qcow2,file.driver=file,file.filename=a.qcow2 \\\n    -device virtio-blk,drive=A,id=virtio0,x-endpoint=unix:./disk.sock \\\n    -qmp unix:./qmp.sock,server=on,wait=off',
    ],
  ],
  shell: [
    [
      'What is below an overlay is copied into it, and the job watched:',
      'livedisk shell ./qmp.sock --wait job0 block-stream device=B job-id=job0',
    ],
  ],
  show: [
    [
      'The chains of a running server, and a picture of them:',
      'livedisk show ./qmp.sock\nlivedisk show --svg chain.svg ./qmp.sock',
    ],
    ['Whose each part of a disk is:', 'livedisk show --map b.qcow2'],
  ],
  'storage-daemon': [
    [
      'An image is served for writing over NBD:',
      'livedisk storage-daemon --blockdev node-name=A,driver=qcow2,file.driver=file,file.filename=a.qcow2 \\\n    --nbd-server addr.type=unix,addr.path=./disk.nbd \\\n    --export type=nbd,id=e,node-name=A,name=disk,writable=on',
    ],
  ],
  top: [['One look, of five seconds:', 'livedisk top --once --interval 5 ./qmp.sock']],
  web: [['A page that may name files of this folder:', 'livedisk web --allow . ./qmp.sock']],
};

/** Further sections of some pages. */
const SECTIONS: Readonly<Record<string, Readonly<Record<string, string>>>> = {
  io: { COMMANDS: commandSummaries().replaceAll(/^/gm, '  ') },
  shell: {
    FILES: '  ~/.livedisk_history\n        what was typed, for Ctrl-R and the arrow keys',
    ENVIRONMENT: '  LIVEDISK_HISTORY\n        another file for that, or none where it is empty',
  },
};

/** All pages, `livedisk` first. */
export function manualPages(): Page[] {
  const names = Object.keys(SUBCOMMANDS);
  const main: Page = {
    name: 'livedisk',
    summary: 'serve disk chains to running guests, and reshape them while they write',
    help: usage(),
    examples: EXAMPLES['run'] ?? [],
    seeAlso: names.map((name) => `livedisk-${name}`),
  };
  return [main, ...names.flatMap((name) => subcommandPage(name) ?? [])];
}

/** Undefined for one whose help is not known here, which the tests do not let pass. */
function subcommandPage(name: string): Page | undefined {
  const help = HELP_TEXTS[name];
  if (help === undefined) return undefined;
  const sections = SECTIONS[name];
  return {
    name: `livedisk-${name}`,
    summary: SUBCOMMANDS[name]?.summary ?? '',
    help,
    ...(sections && { sections }),
    examples: EXAMPLES[name] ?? [],
    seeAlso: ['livedisk', ...SEE_ALSO.filter((other) => other !== name).map((other) => `livedisk-${other}`)],
  };
}

const SEE_ALSO = ['run', 'shell', 'show', 'img'];
