"""The model asks itself questions about chunks and answers them: the data of a cartridge."""
