/// <reference types="node" preserve="true" />
export { QmpClient, type QmpEvent } from './client.js';
export { queryQmpSchema } from './introspect.js';
export { formatJson, formatJsonPretty, type Writable } from './json-format.js';
export { JsonStream, parseJson } from './json-parser.js';
export {
  command,
  type CommandDefinition,
  CommandRegistry,
  type ErrorClass,
  type Handler,
  QmpError,
} from './registry.js';
export { QmpHub } from './hub.js';
export { QmpSession } from './session.js';
export { VERSION } from './version.js';
export type { JsonObject, JsonValue } from '../../schema/types.js';
