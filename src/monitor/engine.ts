import { EngineParts, type EngineProperties } from './parts.js';
import { registerCommands } from './register.js';

export type { EngineProperties } from './parts.js';
export type { EventListener } from './listeners.js';

/** An engine's parts with every command on them. */
export class Engine extends EngineParts {
  constructor(properties: EngineProperties) {
    super(properties);
    registerCommands(this);
  }
}
