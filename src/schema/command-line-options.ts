import type { ParameterType } from './machine.js';
import { THROTTLE_LIMITS } from './objects.js';

/** Options of `livedisk run` with parameters that have names, for query-command-line-options. */

type Parameters = { readonly [name: string]: ParameterType };

const LIMITS = Object.fromEntries(
  THROTTLE_LIMITS.map((name): [string, ParameterType] => [`throttling.${name}`, 'number']),
);

/** Those with none listed take whatever their type of object or device takes. */
export const COMMAND_LINE_OPTIONS: { readonly [option: string]: Parameters } = {
  'add-fd': { fd: 'number', set: 'number', opaque: 'string' },
  chardev: {
    backend: 'string',
    path: 'string',
    host: 'string',
    port: 'string',
    fd: 'string',
    server: 'boolean',
    wait: 'boolean',
    reconnect: 'number',
    abstract: 'boolean',
    tight: 'boolean',
    nodelay: 'boolean',
    append: 'boolean',
    size: 'size',
    signal: 'boolean',
    mux: 'boolean',
    logfile: 'string',
    logappend: 'boolean',
  },
  device: {},
  drive: {
    bus: 'number',
    unit: 'number',
    index: 'number',
    media: 'string',
    if: 'string',
    file: 'string',
    format: 'string',
    snapshot: 'boolean',
    'read-only': 'boolean',
    rerror: 'string',
    werror: 'string',
    'copy-on-read': 'boolean',
    'cache.writeback': 'boolean',
    'force-share': 'boolean',
    discard: 'string',
    'detect-zeroes': 'string',
    'throttling.group': 'string',
    ...LIMITS,
  },
  mon: { chardev: 'string', mode: 'string', pretty: 'boolean' },
  name: { guest: 'string', process: 'string', 'debug-threads': 'boolean' },
  object: {},
};
