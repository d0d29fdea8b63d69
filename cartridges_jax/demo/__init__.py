"""The main job in one command: a document in, a cartridge and a report out."""
