import { BlockError, toBlockError } from '../../base/error.js';
import { MAX_NBD_STRING_BYTES } from '../../base/limits.js';
import type { DetectZeroesMode, DiscardMode } from '../../block/modes.js';
import type { SocketAddress } from '../../host/host.js';
import { NBD_DEFAULT_PORT } from '../../wire/nbd/constants.js';
import type { FileAio } from '../../block/open-context.js';
import { type LoadSnapshot, parseLoadSnapshot } from '../arguments/load-snapshot.js';
import { toolObjectHelp } from '../arguments/objects.js';
import { parseTrace, traceHelp, type TraceOptions } from '../arguments/trace.js';
import { type CacheMode, cacheOptions, isFileAio } from '../io/cache.js';
import { getopt, problemText, type OptionSpec } from '../io/getopt.js';

const spec = (text: string): OptionSpec => {
  const takesValue = text.endsWith(':');
  const [short = '', long = ''] = (takesValue ? text.slice(0, -1) : text).split('|');
  return { short, long, takesValue };
};

const OPTIONS: readonly OptionSpec[] = [
  ...['h|help', 'V|version', 'b|bind:', 'p|port:', 'k|socket:', 'o|offset:', 'r|read-only', 's|snapshot'],
  ...['l|load-snapshot:', 'n|nocache', '|cache:', '|aio:', '|discard:', '|detect-zeroes:', 'e|shared:'],
  ...[
    'f|format:',
    't|persistent',
    'v|verbose',
    '|object:',
    'x|export-name:',
    'D|description:',
    '|tls-creds:',
  ],
  ...['|tls-authz:', '|tls-hostname:', '|image-opts', 'T|trace:', '|fork', '|pid-file:', '|selinux-label:'],
  ...['L|list', 'B|bitmap:', 'A|allocation-depth', 'c|connect:', 'd|disconnect'],
].map(spec);

export const HELP = `Usage: livedisk nbd [OPTIONS] FILE
  or:  livedisk nbd -L [OPTIONS]
Serves an image over NBD, as qemu-nbd does.

  -h, --help                display this help and exit
  -V, --version             output version information and exit

Connection properties:
  -p, --port=PORT           port to listen on (default \`10809')
  -b, --bind=IFACE          interface to bind to (default \`0.0.0.0')
  -k, --socket=PATH         path to the unix socket
  -e, --shared=NUM          device can be shared by NUM clients (default '1', 0: any number)
  -t, --persistent          don't exit on the last connection
  -v, --verbose             display extra debugging information
  -x, --export-name=NAME    expose export by name (default is empty string)
  -D, --description=TEXT    export a human-readable description

Exposing part of the image:
  -o, --offset=OFFSET       offset into the image
  -A, --allocation-depth    expose the allocation depth
  -B, --bitmap=NAME         expose a dirty bitmap

General purpose options:
  -L, --list                list exports available from another NBD server
  --object type,id=ID,...   define an object such as 'secret'
  --tls-creds=ID            use TLS with the credentials of that id
  --tls-authz=ID            who comes in, by the name in a client's certificate
  --tls-hostname=NAME       with --list: what the server's certificate must say
  --fork                    leave the server in the background, once it is running
  -T, --trace [[enable=]PATTERN][,events=FILE][,file=FILE]
                            tell what happens at trace points (-T help lists them)
  --pid-file=PATH           store the server's process ID in the given file

Block device options:
  -f, --format=FORMAT       set image format (raw, qcow2, ...)
  -r, --read-only           export read-only
  -s, --snapshot            redirect writes to a temporary file over FILE
  -l, --load-snapshot=PARAM export an internal snapshot of FILE, read-only: its id or name, or
                            snapshot.id=ID,snapshot.name=NAME
  -n, --nocache             disable host cache
      --cache=MODE          'none', 'writeback' (default), 'writethrough', 'directsync' and 'unsafe'
      --discard=MODE        set discard mode (ignore, unmap)
      --detect-zeroes=MODE  set detect-zeroes mode (off, on, unmap)
      --image-opts          treat FILE as a full set of image options

Sockets may be passed by socket activation (LISTEN_FDS).
`;

export interface NbdArguments {
  asks: 'help' | 'version' | 'list' | { text: string } | undefined;
  filename: string;
  imageOpts: boolean;
  format: string | undefined;
  readOnly: boolean;
  snapshot: boolean;
  aio: FileAio;
  /** Of the image only a snapshot inside it is shown. */
  loadSnapshot: LoadSnapshot | undefined;
  offset: number | undefined;
  cache: CacheMode;
  discard: DiscardMode;
  detectZeroes: DetectZeroesMode;
  /** Undefined: a socket that was passed is to be used. */
  address: SocketAddress | undefined;
  /** The default is told by nobody, for what socket activation may be combined with. */
  given: ReadonlySet<string>;
  exportName: string;
  description: string | undefined;
  bitmaps: string[];
  allocationDepth: boolean;
  mostClients: number;
  persistent: boolean;
  verbose: boolean;
  fork: boolean;
  pidFile: string | undefined;
  objects: string[];
  tlsCreds: string | undefined;
  tlsAuthz: string | undefined;
  tlsHostname: string | undefined;
  traces: TraceOptions[];
}

const fail = (text: string, hint?: string): never => {
  throw new BlockError('invalid', text, hint === undefined ? {} : { hint });
};
const MORE = "Try `qemu-nbd --help' for more information.";

/** What the list of exports has no use for. */
const SERVER_ONLY = ['shared', 'persistent', 'description', 'offset', 'bitmap', 'allocation-depth'];
const IMAGE_ONLY = ['format', 'read-only', 'snapshot', 'cache', 'nocache', 'discard', 'detect-zeroes'];

/** Errors: kind invalid in QEMU's words; unsupported, naming the option. */
export function parseNbdArguments(words: readonly string[]): NbdArguments {
  const { options, operands, problem } = getopt(words, OPTIONS);
  if (problem) fail(problemText(problem), `qemu-nbd: ${MORE}`);
  const given = new Set(options.map(({ name }) => name));
  const last = (name: string): string | undefined =>
    options.filter((option) => option.name === name).at(-1)?.value;
  const all = (name: string): string[] =>
    options.filter((option) => option.name === name).map(({ value }) => value);
  const asks = given.has('help')
    ? 'help'
    : given.has('version')
      ? 'version'
      : given.has('list')
        ? 'list'
        : undefined;
  if (asks === 'help' || asks === 'version') return { ...NOTHING, asks };
  const text = all('trace').map(traceHelp).find(Boolean) ?? toolObjectHelp(all('object'));
  if (text !== undefined) return { ...NOTHING, asks: { text } };
  refuseUnsupported(given);
  const parsed: NbdArguments = {
    asks,
    given,
    filename: operands[0] ?? '',
    imageOpts: given.has('image-opts'),
    format: last('format'),
    // What a snapshot shows is only read.
    readOnly: given.has('read-only') || given.has('load-snapshot'),
    snapshot: given.has('snapshot'),
    loadSnapshot: snapshotOf(last('load-snapshot')),
    offset: offsetOf(last('offset')),
    cache: cacheOf(last('cache') ?? (given.has('nocache') ? 'none' : 'writeback')),
    discard: discardOf(last('discard') ?? 'ignore'),
    aio: parseAio(last('aio') ?? 'threads'),
    detectZeroes: zeroesOf(last('detect-zeroes') ?? 'off'),
    mostClients: sharedOf(last('shared') ?? '1'),
    exportName: shortOf('export name', last('export-name')) ?? '',
    description: shortOf('export description', last('description')),
    address: addressOf(last('socket'), last('bind'), last('port'), asks === 'list'),
    bitmaps: all('bitmap'),
    allocationDepth: given.has('allocation-depth'),
    persistent: given.has('persistent'),
    verbose: given.has('verbose'),
    fork: given.has('fork'),
    pidFile: last('pid-file'),
    objects: all('object'),
    tlsCreds: last('tls-creds'),
    tlsAuthz: last('tls-authz'),
    tlsHostname: last('tls-hostname'),
    traces: all('trace').map(parseTrace),
  };
  checkOnce(options);
  checkTogether(given, operands, asks);
  checkDetectZeroes(options);
  return parsed;
}

const NOTHING: NbdArguments = {
  asks: undefined,
  given: new Set(),
  filename: '',
  imageOpts: false,
  format: undefined,
  readOnly: false,
  snapshot: false,
  aio: 'threads',
  loadSnapshot: undefined,
  offset: undefined,
  cache: { options: { direct: false, 'no-flush': false }, writethrough: false },
  discard: 'ignore',
  detectZeroes: 'off',
  address: undefined,
  exportName: '',
  description: undefined,
  bitmaps: [],
  allocationDepth: false,
  mostClients: 1,
  persistent: false,
  verbose: false,
  fork: false,
  pidFile: undefined,
  objects: [],
  tlsCreds: undefined,
  tlsAuthz: undefined,
  tlsHostname: undefined,
  traces: [],
};

function refuseUnsupported(given: ReadonlySet<string>): void {
  if (given.has('selinux-label'))
    throw new BlockError('unsupported', '--selinux-label is not supported by livedisk');
}

function parseAio(mode: string): FileAio {
  return isFileAio(mode) ? mode : fail(`Invalid aio mode '${mode}'`);
}

function checkOnce(options: ReadonlyArray<{ name: string }>): void {
  for (const [names, text] of [
    [['nocache', 'cache'], '-n and --cache'],
    [['aio'], '--aio'],
    [['discard'], '--discard'],
  ] as const) {
    const isOf = ({ name }: { name: string }): boolean => (names as readonly string[]).includes(name);
    if (options.filter(isOf).length > 1) fail(`${text} can only be specified once`);
  }
}

function checkTogether(
  given: ReadonlySet<string>,
  operands: readonly string[],
  asks: string | undefined,
): void {
  if (given.has('tls-hostname') && !given.has('tls-creds'))
    fail('--tls-hostname is not permitted without --tls-creds');
  if (given.has('tls-authz') && !given.has('tls-creds'))
    fail('--tls-authz is not permitted without --tls-creds');
  if (asks === 'list') {
    if (operands.length > 0) fail('List mode is incompatible with a file name');
    if ([...SERVER_ONLY, ...IMAGE_ONLY].some((name) => given.has(name)))
      fail('List mode is incompatible with per-device settings');
    return;
  }
  if (given.has('tls-hostname')) fail('TLS hostname is only supported with export list');
  // Both take a device, which is not served then.
  if (operands.length !== 1) fail('Invalid number of arguments', MORE);
  if (given.has('image-opts') && given.has('format')) fail('--image-opts and -f are mutually exclusive');
}

/** Unmapping has to be allowed before it is asked for, in order of the options. */
function checkDetectZeroes(options: ReadonlyArray<{ name: string; value: string }>): void {
  let discard: DiscardMode = 'ignore';
  for (const { name, value } of options) {
    if (name === 'discard') discard = discardOf(value);
    if (name === 'detect-zeroes' && value === 'unmap' && discard === 'ignore')
      fail('setting detect-zeroes to unmap is not allowed without setting discard operation to unmap');
  }
}

function snapshotOf(text: string | undefined): LoadSnapshot | undefined {
  if (text === undefined) return undefined;
  try {
    return parseLoadSnapshot(text);
  } catch (error) {
    return fail(toBlockError(error).message, `qemu-nbd: Failed in parsing snapshot param \`${text}'`);
  }
}

function offsetOf(text: string | undefined): number | undefined {
  if (text === undefined) return undefined;
  const bytes = /^(0x[0-9a-fA-F]+|\d+)$/.test(text) ? Number(text) : NaN;
  return Number.isSafeInteger(bytes) ? bytes : fail(`Invalid offset '${text}'`);
}

function shortOf(what: string, text: string | undefined): string | undefined {
  return text === undefined || Buffer.byteLength(text) <= MAX_NBD_STRING_BYTES
    ? text
    : fail(`${what} '${text}' too long`);
}

function sharedOf(text: string): number {
  return /^\d+$/.test(text) && Number(text) < 2 ** 31
    ? Number(text)
    : fail(`Invalid shared device number '${text}'`);
}

function cacheOf(mode: string): CacheMode {
  return cacheOptions(mode) ?? fail(`Invalid cache mode \`${mode}'`);
}

function discardOf(mode: string): DiscardMode {
  if (mode === 'unmap' || mode === 'on') return 'unmap';
  return mode === 'ignore' || mode === 'off' ? 'ignore' : fail(`Invalid discard mode \`${mode}'`);
}

function zeroesOf(mode: string): DetectZeroesMode {
  if (mode === 'off' || mode === 'on' || mode === 'unmap') return mode;
  return fail(`Failed to parse detect_zeroes mode: invalid parameter value: ${mode}`);
}

function addressOf(
  path: string | undefined,
  host: string | undefined,
  port: string | undefined,
  toConnect: boolean,
): SocketAddress {
  if (path !== undefined)
    return path.startsWith('/') ? { type: 'unix', path } : fail('socket path must be absolute');
  const at = host ?? (toConnect ? 'localhost' : '0.0.0.0');
  const text = port ?? String(NBD_DEFAULT_PORT);
  if (!/^\d+$/.test(text) || Number(text) > 65535)
    fail(`address resolution failed for ${at}:${text}: Servname not supported for ai_socktype`);
  return { type: 'inet', host: at, port: Number(text) };
}
