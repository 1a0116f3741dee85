import { BlockError } from '../../base/error.js';
import type { GivenOptions, NodeOptions, Settings } from '../../block/driver.js';
import type { SSH_OPTIONS } from '../../schema/blockdev-options.js';
import type { FlatOptions } from '../../schema/flat.js';
import { scalarText } from '../../schema/types.js';

export type SshSettings = Settings<typeof SSH_OPTIONS>;
/** What says which file is meant. */
export type SshPlace = Pick<SshSettings, 'server' | 'path' | 'user' | 'host-key-check'>;

const DEFAULT_PORT = '22';
/** What stands for itself in a URI. */
const PLAIN = /^[A-Za-z0-9._~/@!$'()*+,:-]*$/;

/** `ssh://[user@]host[:port]/path[?host_key_check=...]`. Errors: invalid, in QEMU's words. */
export function parseSshFilename(filename: string): NodeOptions | undefined {
  if (!filename.startsWith('ssh:')) return undefined;
  const [, user, bracketed, plain, port, path, query = ''] =
    /^ssh:\/\/(?:([^@/?#]*)@)?(?:\[([^\]]+)\]|([^:/?#]*))(?::(\d*))?([^?#]*)(?:\?([^#]*))?(?:#.*)?$/.exec(
      filename,
    ) ?? [];
  const host = bracketed ?? plain ?? '';
  if (host === '') throw invalid('missing hostname in URI');
  if (path === undefined || path === '' || path === '/') throw invalid('missing remote path in URI');
  const check = new URLSearchParams(query).get('host_key_check');
  return {
    server: { host: decode(host), port: port === undefined || port === '' ? DEFAULT_PORT : port },
    path: decode(path),
    ...(user !== undefined && user !== '' && { user: decode(user) }),
    ...(check !== null && { 'host-key-check': hostKeyCheck(check) }),
  };
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw invalid('No valid URL specified');
  }
}

/** The older spelling of `host-key-check`. */
function hostKeyCheck(text: string): NodeOptions {
  if (text === 'no') return { mode: 'none' };
  if (text === 'yes') return { mode: 'known_hosts' };
  const [, type, hash] = /^(md5|sha1|sha256):(.*)$/.exec(text) ?? [];
  if (type === undefined || hash === undefined) throw invalid(`unknown host_key_check setting (${text})`);
  return { mode: 'hash', type, hash };
}

/** `host` and `port` in place of `server`, and `host_key_check`. */
export function modernSshOptions(options: FlatOptions): void {
  const [host, port, check] = ['host', 'port', 'host_key_check'].map((key) => {
    const value = options.take(key);
    return value === undefined || value === null ? undefined : scalarText(value, key);
  });
  if (port !== undefined && host === undefined) throw invalid('port may not be used without host');
  if (host !== undefined) {
    options.put('server.host', host);
    options.put('server.port', port ?? DEFAULT_PORT);
  }
  if (check === undefined) return;
  for (const [key, value] of Object.entries(hostKeyCheck(check))) options.put(`host-key-check.${key}`, value);
}

/** Undefined where a URI cannot say it. */
export function sshFilename(options: GivenOptions): string | undefined {
  const server = options['server'] as NodeOptions;
  const { path, user } = options;
  const [host, port] = [server['host'], server['port']];
  if (typeof host !== 'string' || typeof port !== 'string' || typeof path !== 'string') return undefined;
  const whose = typeof user === 'string' ? user : '';
  const isPlain = [host, path, whose].every((part) => PLAIN.test(part)) && path.startsWith('/');
  if (!isPlain || whose.includes('@')) return undefined;
  const check = checkText(options['host-key-check'] as NodeOptions | undefined);
  return `ssh://${whose === '' ? '' : `${whose}@`}${host.includes(':') ? `[${host}]` : host}:${port}${path}${check}`;
}

function checkText(check: NodeOptions | undefined): string {
  if (check?.['mode'] === 'none') return '?host_key_check=no';
  const { type, hash } = check ?? {};
  return typeof type === 'string' && typeof hash === 'string' ? `?host_key_check=${type}:${hash}` : '';
}

/** The words of a command line that talks SFTP with the server. Errors: invalid. */
export function sshCommand({ server, user, 'host-key-check': check }: SshPlace): string[] {
  const { host, port } = server;
  // ssh takes what begins with "-" for an option, and puts names into commands of its configuration.
  if (!/^[A-Za-z0-9:_][A-Za-z0-9._:%-]*$/.test(host)) throw invalid(`'${host}' is no name of a host`);
  if (!/^\d{1,5}$/.test(port) || Number(port) > 65535) throw invalid(`'${port}' is no port`);
  if (user !== undefined && !/^[A-Za-z0-9_][^\s'"`$\\;&<>|(){}]*$/.test(user))
    throw invalid(`'${user}' is no name of a user`);
  const whose = user === undefined ? [] : ['-l', user];
  return [
    'ssh',
    ...OPTIONS.flatMap(word),
    ...checkOptions(check).flatMap(word),
    '-p',
    port,
    ...whose,
    '-s',
    '--',
    host,
    'sftp',
  ];
}

const word = (option: string): string[] => ['-o', option];

/** Nobody is asked anything, nothing but SFTP is done, and a server that is silent is given up. */
const OPTIONS = [
  'BatchMode=yes',
  'ClearAllForwardings=yes',
  'ForwardAgent=no',
  'ForwardX11=no',
  'PermitLocalCommand=no',
  'RemoteCommand=none',
  'RequestTTY=no',
  'ControlPath=none',
  'ConnectTimeout=30',
  'ServerAliveInterval=15',
  'ServerAliveCountMax=3',
];
const ANY_KEY = [
  'StrictHostKeyChecking=no',
  'UserKnownHostsFile=/dev/null',
  'GlobalKnownHostsFile=/dev/null',
];

function checkOptions(check: SshPlace['host-key-check']): string[] {
  switch (check?.mode) {
    case 'none':
      return ANY_KEY;
    case 'hash':
      // The key is told before anything else, and looked at before a file is asked for.
      return [...ANY_KEY, 'LogLevel=DEBUG1', `FingerprintHash=${check.type}`];
    default:
      return ['StrictHostKeyChecking=yes'];
  }
}

/** What `ssh` says at LogLevel=DEBUG1: "Server host key: ssh-ed25519 SHA256:..." */
export function fingerprintIn(text: string): { key: string; hash: string } | undefined {
  const [, key, type, digest] =
    /^debug1: Server host key: (\S+) (MD5|SHA1|SHA256):(\S+)\r?$/m.exec(text) ?? [];
  if (key === undefined || digest === undefined) return undefined;
  const hash = type === 'MD5' ? digest.replaceAll(':', '') : Buffer.from(digest, 'base64').toString('hex');
  return { key, hash };
}

/** Errors: permission where the key is not the one that was named. */
export function checkFingerprint(
  { key, hash }: { key: string; hash: string },
  check: SshPlace['host-key-check'],
): void {
  if (check?.mode !== 'hash') return;
  if (check.hash.replaceAll(':', '').toLowerCase() === hash) return;
  const what = `remote host ${key} key fingerprint '${check.type}:${hash}'`;
  throw new BlockError('permission', `${what} does not match host_key_check '${check.type}:${check.hash}'`);
}

/** Why `ssh` has ended, from what it said last; in QEMU's words where it has some. */
export function endReason(text: string, { server }: SshPlace): BlockError | undefined {
  const lines = text.split(/\r?\n/).filter((line) => line !== '' && !line.startsWith('debug1: '));
  const [, , connect] = /^ssh: connect to host (\S+) port \d+: (.*)$/m.exec(text) ?? [];
  if (connect !== undefined)
    return new BlockError('not-found', `Failed to connect to '${server.host}:${server.port}': ${connect}`);
  const [, resolve] = /^ssh: Could not resolve hostname \S+: (.*)$/m.exec(text) ?? [];
  if (resolve !== undefined)
    return new BlockError(
      'not-found',
      `address resolution failed for ${server.host}:${server.port}: ${resolve}`,
    );
  if (/REMOTE HOST IDENTIFICATION HAS CHANGED/.test(text))
    return new BlockError('permission', 'host key does not match the one in known_hosts');
  if (/Host key verification failed/.test(text))
    return new BlockError('permission', 'no host key was found in known_hosts');
  if (/Permission denied \(/.test(text))
    return new BlockError(
      'permission',
      'failed to authenticate using publickey authentication and the identities held by your ssh-agent',
    );
  const last = lines.at(-1);
  return last === undefined ? undefined : new BlockError('io', last);
}

function invalid(text: string): BlockError {
  return new BlockError('invalid', text);
}
