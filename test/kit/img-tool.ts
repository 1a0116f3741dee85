import { allDrivers } from '../../src/drivers/index.js';
import { createRealHost } from '../../src/host/real.js';
import { imgMain } from '../../src/programs/img/main.js';
import { type ToolAnswer, toolAnswer } from './tool-answer.js';

/** `livedisk img` with these words, on this machine. */
export function img(...words: string[]): Promise<ToolAnswer> {
  return toolAnswer((out) => imgMain(words, out, createRealHost(), allDrivers));
}
