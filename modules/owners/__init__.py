"""Did the model train on the records of this owner? From scores of records to scores of owners."""
