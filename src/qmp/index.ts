export { CommandRegistry, QmpError } from './registry.js';
export { QmpHub, QmpSession } from './session.js';
