import assert from 'node:assert/strict';
import { BlockError } from '../../src/base/error.js';
import { DriverRegistry } from '../../src/block/registry.js';
import { parseJsonName } from '../../src/block/node-plan.js';
import { allDrivers } from '../../src/drivers/index.js';
import { SeededRandom } from '../../src/host/simulated-random.js';
import { parseCharacterDevice } from '../../src/programs/arguments/character-devices.js';
import { parseDrive } from '../../src/programs/arguments/drive-options.js';
import { parseImageOpts } from '../../src/programs/arguments/image-opts.js';
import { parseKeyval } from '../../src/programs/arguments/keyval.js';
import { parseObject } from '../../src/programs/arguments/objects.js';
import { parseNbdArguments } from '../../src/programs/nbd/arguments.js';
import { parseRunOptions } from '../../src/programs/run/options.js';
import { parseCommandLine } from '../../src/programs/shell/command-line.js';
import { COMMANDS } from '../../src/schema/commands.js';
import { FlatOptions } from '../../src/schema/flat.js';
import { parseJson } from '../../src/wire/qmp/json-parser.js';
import type { UnderFuzz } from './main.js';
import { pick } from './random-bytes.js';

const TEXTS_A_MEETING = 40;
/** A text of so few bytes takes no longer, however slow the machine is. */
const LONGEST_MS = 5000;

const { gate } = new DriverRegistry(allDrivers);

/** Lines of words, as a program is given them. */
const words = (text: string): string[] => text.split(' ');

/** What parses, and texts that it takes. */
const PARSERS: ReadonlyArray<
  readonly [name: string, parse: (text: string) => unknown, texts: readonly string[]]
> = [
  [
    'blockdev',
    (text) => gate.plan(parseKeyval(text, 'driver'), text.startsWith('{') ? 'qmp' : 'keyval'),
    [
      'driver=qcow2,node-name=a,file.driver=file,file.filename=a,,b,backing=',
      'qcow2,file.driver=nbd,file.server.type=inet,file.server.host=h,file.server.port=1,l2-cache-size=1M',
      'driver=quorum,vote-threshold=2,children.0=a,children.1.driver=raw,children.1.file=b',
      'driver=blkdebug,image=x,inject-error.0.event=none,inject-error.0.errno=5,set-state.0.new_state=2',
      '{"driver": "raw", "offset": 512, "size": 18446744073709551615, "file": {"driver": "null-co"}}',
      '{"driver": "quorum", "vote-threshold": 1, "children": ["a", {"driver": "null-co", "size": 1e3}]}',
    ],
  ],
  [
    'json name',
    (text) => gate.planFlat(FlatOptions.of(parseJsonName(`json:${text}`))),
    [
      '{"driver":"qcow2","file":{"driver":"file","filename":"a"},"backing":null}',
      '{"file.driver":"nbd","file.server.0.type":"unix","file.path":"/x","driver":"raw","offset":"1k"}',
      '{"driver":"quorum","vote-threshold":"2","children.0.driver":"null-co","children":[{"driver":"null-co"}]}',
      '{"file":{"filename":"x"},"backing.file.filename":"y","driver":"qcow2","cache":{"direct":true}}',
    ],
  ],
  [
    'image-opts',
    (text) => gate.planFlat(parseImageOpts(text, { warn: () => undefined })),
    ['driver=qcow2,file.filename=a', 'driver=raw,read-only,nocache,file.driver=nbd,file.host=h,file.port=1'],
  ],
  [
    'drive',
    (text) => parseDrive(text, () => undefined),
    [
      'file=a.qcow2,if=virtio,format=qcow2,id=d0,cache=none,aio=native,discard=unmap,detect-zeroes=on',
      'if=none,id=x,throttling.bps-total=1M,throttling.iops-read-max=7,snapshot=on,rerror=stop,werror=enospc',
      'file.driver=nbd,file.server.type=unix,file.server.path=/x,backing.file.filename=b,media=cdrom',
    ],
  ],
  [
    'chardev',
    parseCharacterDevice,
    [
      'socket,id=c,path=/x,server=on,wait=off',
      'socket,id=c,host=::1,port=5,to=9,ipv4,reconnect=3',
      'pty,id=p',
    ],
  ],
  [
    'object',
    parseObject,
    [
      'throttle-group,id=g,x-iops-total=5',
      'qom-type=secret,id=s,data=abc,format=raw',
      '{"qom-type":"throttle-group","id":"g","limits":{"iops-total":5}}',
    ],
  ],
  [
    'run',
    (text) => parseRunOptions(words(text), 'machine'),
    [
      '-drive file=a,if=none,id=x -device virtio-blk-pci,drive=x,serial=5 -qmp unix:/x,server=on,wait=off -S',
      '-blockdev driver=null-co,node-name=n -M none,accel=kvm -m 1G,slots=2 -smp 2 -name a,process=b -monitor stdio',
      '-hda a -cdrom b -snapshot -uuid 00112233-4455-6677-8899-aabbccddeeff -incoming defer -nodefaults',
    ],
  ],
  [
    'storage-daemon',
    (text) => parseRunOptions(words(text), 'storage-daemon'),
    [
      '--blockdev null-co,node-name=n --export nbd,id=e,node-name=n,writable=on --nbd-server addr.type=unix,addr.path=/x',
      '--export=type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path=/x --object secret,id=s,data=x',
      '--chardev stdio,id=c --monitor chardev=c,pretty=on --daemonize --pidfile /x',
    ],
  ],
  [
    'nbd',
    (text) => parseNbdArguments(words(text)),
    [
      '-t -e 5 -x name -k /x -f qcow2 a.qcow2',
      '--shared=2 --bitmap=b --cache none -o 512 -B c -r -v a',
      '-L -b h -p 1',
    ],
  ],
  [
    'shell',
    parseCommandLine,
    [
      "blockdev-add driver=qcow2 node-name='a b' file={'driver':'file',\"filename\":'x'}",
      'block-job-set-speed device=j speed=0x10',
      '{"execute": "query-status", "arguments": {}}',
    ],
  ],
  [
    'json',
    parseJson,
    ['{"a": [1, -2.5e-3, true, null, "\\u00e9\\ud83d\\ude00"], "b": {"c": {}}}', '[[[[]]]]'],
  ],
  [
    'arguments',
    (text) => {
      const { execute, arguments: given } = parseJson(text) as {
        execute: keyof typeof COMMANDS;
        arguments: never;
      };
      const type = Object.hasOwn(COMMANDS, execute) ? COMMANDS[execute] : undefined;
      return type?.parse(given, '', 'qmp');
    },
    [
      '{"execute":"block-commit","arguments":{"device":"d","job-id":"j","top-node":"t","speed":5,"on-error":"stop"}}',
      '{"execute":"transaction","arguments":{"actions":[{"type":"block-dirty-bitmap-add","data":{"node":"n","name":"b","granularity":65536}}],"properties":{"completion-mode":"grouped"}}}',
      '{"execute":"block_set_io_throttle","arguments":{"id":"d","bps":1,"bps_rd":0,"bps_wr":0,"iops":0,"iops_rd":0,"iops_wr":0}}',
      '{"execute":"blockdev-mirror","arguments":{"device":"d","target":"t","sync":"full","granularity":65536,"copy-mode":"background"}}',
      '{"execute":"block-export-add","arguments":{"type":"nbd","id":"e","node-name":"n","bitmaps":["b",{"node":"n","name":"c"}]}}',
    ],
  ],
];

const PIECES = [
  ...[
    ',',
    '=',
    '.',
    ',,',
    '..',
    ' ',
    ':',
    '{',
    '}',
    '[',
    ']',
    '"',
    "'",
    '\\',
    '\\u',
    '\\ud800',
    '\0',
    '\n',
    '%s',
  ],
  ...[
    '0',
    '-1',
    '1e400',
    '0x',
    '18446744073709551616',
    '9223372036854775808',
    '1E',
    'k',
    'on',
    'off',
    'null',
    'help',
    '?',
  ],
  ...[
    '.0',
    '.1.',
    '.18446744073709551616',
    '__proto__',
    'constructor',
    'toString',
    'é',
    '\ud800',
    'json:',
    'driver=',
    '--',
  ],
];

/** A text that a parser takes, changed in a few places. */
function changed(random: SeededRandom, texts: readonly string[]): string {
  let text = pick(random, texts);
  for (let left = random.below(5); left >= 0; left--) {
    const at = random.below(text.length + 1);
    const end = Math.min(text.length, at + random.below(8));
    const other = pick(random, texts);
    const from = random.below(other.length + 1);
    switch (random.below(6)) {
      case 0:
        text = text.slice(0, at) + text.slice(end);
        break;
      case 1:
        text = text.slice(0, at) + pick(random, PIECES) + text.slice(at);
        break;
      case 2:
        text = text.slice(0, at) + pick(random, PIECES) + text.slice(end);
        break;
      case 3:
        text = text.slice(0, at) + other.slice(from) + text.slice(at);
        break;
      case 4:
        text = text.slice(0, at) + text.slice(at, end).repeat(random.below(300)) + text.slice(end);
        break;
      default:
        text = text.slice(0, at) + pick(random, PIECES).repeat(random.below(2000)) + text.slice(at);
    }
  }
  return text;
}

/** What people and programs write: each text is taken or refused, in words, at once. */
export class ParsersUnderFuzz implements UnderFuzz {
  static async start(): Promise<ParsersUnderFuzz> {
    return new ParsersUnderFuzz();
  }

  async meet(random: SeededRandom): Promise<void> {
    for (let left = TEXTS_A_MEETING; left > 0; left--) {
      const [name, parse, texts] = pick(random, PARSERS);
      const text = changed(random, texts);
      const from = performance.now();
      try {
        parse(text);
      } catch (error) {
        const isTold = error instanceof BlockError && error.message !== '';
        if (!isTold) throw new Error(`${name}: ${JSON.stringify(text.slice(0, 4000))}`, { cause: error });
      }
      assert.ok(
        performance.now() - from < LONGEST_MS,
        `${name} is slow: ${JSON.stringify(text.slice(0, 4000))}`,
      );
    }
  }

  /** Nothing of what was read is kept. */
  async check(): Promise<void> {
    assert.equal(Object.keys(Object.prototype).length, 0, 'a text has changed the prototype of objects');
    for (const [name, parse, texts] of PARSERS)
      for (const text of texts.slice(0, 1)) {
        try {
          parse(text);
        } catch (error) {
          throw new Error(`${name} refuses ${text}`, { cause: error });
        }
      }
  }

  async close(): Promise<void> {}
}
